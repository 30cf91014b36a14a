// The page draws at most ten times a second, however much comes.
let planned=false;
const schedule=()=>{
  if(planned)return;
  planned=true;
  setTimeout(()=>requestAnimationFrame(t=>{planned=false;paint(t)}),100);
};
const paint=(t)=>{
  if(M.fresh&&M.doc){
    M.fresh=false;
    const d=M.doc;
    set($('#device'),d.device||'unnamed');
    showPath();showLines(d);showSession(d);showOutbox(d);showIdentity(d);showCommands(d);showTrust(d);showUpdate(d);
  }
  showVerdict();
  if(drawReadings(t))schedule();
};

const THEMES=['automatic','light','dark'];
const theme=(next)=>{
  let chosen='automatic';
  try{
    chosen=localStorage.getItem('ferrule.theme')||chosen;
    if(next){chosen=THEMES[(THEMES.indexOf(chosen)+1)%3];localStorage.setItem('ferrule.theme',chosen)}
  }catch{if(next)chosen=THEMES[(THEMES.indexOf(root.dataset.theme||chosen)+1)%3]}
  if(chosen==='automatic')delete root.dataset.theme;else root.dataset.theme=chosen;
  const b=$('#theme');
  attr(b,'aria-label','Theme: '+chosen);b.title='Theme: '+chosen;
  redraw();
};
const redraw=()=>{forgetColours();for(const l of R.lines.values())for(const u of l.units.values())u.stale=true;M.fresh=true;schedule()};

$('#theme').addEventListener('click',()=>theme(true));
matchMedia('(prefers-color-scheme: dark)').addEventListener('change',redraw);
addEventListener('resize',redraw);
document.addEventListener('visibilitychange',visible);
addEventListener('pagehide',close);
addEventListener('pageshow',e=>{if(e.persisted)ask()});
$('#units').addEventListener('click',e=>{const b=e.target.closest('.point');if(b){rove(b.$point.unit.line,b);toggle(b.$point)}});
$('#units').addEventListener('keydown',keys);
$('#filter').addEventListener('input',e=>filter(e.target.value));
$('#filter').addEventListener('keydown',e=>{if(e.key==='Escape'&&e.target.value){e.target.value='';filter('');e.preventDefault()}});
$('#story-more').addEventListener('click',()=>{whole=!whole;M.fresh=true;schedule()});
document.addEventListener('keydown',e=>{
  if(e.key!=='/'||e.ctrlKey||e.metaKey||e.altKey||/^(INPUT|TEXTAREA)$/.test(e.target.tagName)||$('#find').hidden)return;
  e.preventDefault();$('#filter').focus();
});

theme();
open();
// An agent without events is asked for its status instead.
setTimeout(()=>{if(!M.doc&&M.link==='wait')ask()},2500);
setInterval(()=>{tickReadings();watch();schedule()},1000);
