// Live values. A talker can call itself what it likes, so names are bounded in number; and a plot
// that is not on the screen is not drawn.
const MOST_UNITS=600,MOST_POINTS=3000,MOST_TEXT=256*1024,PER_FRAME=90,FORGET=600000;
const BAD={timeout:'no answer',crc:'damaged',mismatch:'wrong answer',nan:'no value',invalid:'not valid',missing:'not sent',line:'line down',refused:'refused',encrypted:'encrypted'};
const badWord=(r)=>BAD[r]||str(r).replace('-',' ')||'bad';
const R={lines:new Map(),units:0,points:0,over:0,dirty:new Set(),filter:'',batch:[]};

const lineOf=(name)=>{
  let l=R.lines.get(name);
  if(l)return l;
  const title=el('bdi','',name),info=el('span','mute'),grid=el('div','grid');
  const box=el('details','line',el('summary','',icon('lines'),title,info),grid);
  l={name,units:new Map(),box,grid,info};
  box.addEventListener('toggle',()=>{for(const u of l.units.values())u.stale=true;schedule()});
  R.lines.set(name,l);$('#units').append(box);
  // A phone shows many units as a list of lines first.
  box.open=!(innerWidth<700&&R.lines.size>1&&unitsInStatus()>6);
  return l;
};
const unitsInStatus=()=>arr(M.doc&&M.doc.lines).reduce((n,l)=>n+arr(l&&l.units).length,0);

const seen=new IntersectionObserver((list)=>{
  for(const e of list){const u=e.target.$unit;u.visible=e.isIntersecting;if(u.visible)u.stale=true}
  schedule();
},{rootMargin:'120px'});

const unitOf=(line,name)=>{
  const l=lineOf(line);
  let u=l.units.get(name);
  if(u)return u;
  if(R.units>=MOST_UNITS){R.over++;return null}
  R.units++;
  const age=el('span','age'),rows=el('div','rows'),wait=el('p','empty','Waits for its first reading');
  const box=el('article','unit',el('header','',el('i','dot'),el('h3','',el('bdi','',name)),age),rows);
  rows.append(wait);
  attr(box,'aria-label',name);
  u={line:l,name,box,rows,age,wait,points:new Map(),heard:0,visible:false,stale:true,uom:{},state:'wait',word:''};
  box.$unit=u;
  l.units.set(name,u);l.grid.append(box);seen.observe(box);
  match(u);
  return u;
};

const pointOf=(u,name)=>{
  let p=u.points.get(name);
  if(p)return p;
  if(R.points>=MOST_POINTS){R.over++;return null}
  R.points++;
  const canvas=el('canvas','spark'),value=el('bdi','value'),uom=el('small','uom');
  attr(canvas,'aria-hidden','true');
  const button=el('button','point',el('bdi','name',name),canvas,el('span','reading',value,uom));
  button.type='button';button.tabIndex=-1;attr(button,'aria-expanded','false');button.title=name;
  p={unit:u,name,canvas,value,uom,button,row:el('div','row',button),series:new Series(),v:undefined,bad:'',digits:0,wide:0,drawn:0,detail:null};
  button.$point=p;
  if(u.wait){u.wait.remove();u.wait=null}
  u.points.set(name,p);u.rows.append(p.row);
  match(u);
  if(!u.line.stop)rove(u.line,button);
  return p;
};

// reading takes one message of the stream: an entry, or an array of them.
const reading=(text)=>{
  let v;
  try{if(text.length<=MOST_TEXT)v=JSON.parse(text)}catch{}
  if(!v||typeof v!=='object'){M.counts.foreign++;return}
  for(const e of Array.isArray(v)?v:[v])entry(obj(e));
  schedule();
};
const entry=(e)=>{
  const line=str(e.line),name=str(e.unit);
  if(!line||!name)return;
  M.counts.entries++;
  const u=unitOf(line,name);
  if(!u)return;
  u.heard=performance.now();
  let failed=0;
  for(const[k,v]of Object.entries(obj(e.readings))){
    const p=pointOf(u,k);
    if(!p)continue;
    M.counts.values++;
    p.v=v;p.bad='';
    if(typeof v==='number')p.series.push(v);else if(typeof v==='boolean')p.series.push(v?1:0);
    R.dirty.add(p);
  }
  for(const[k,why]of Object.entries(obj(e.bad))){
    const p=pointOf(u,k);
    if(!p)continue;
    failed++;p.bad=str(why)||'bad';p.series.fail();
    R.dirty.add(p);
  }
  u.failed=failed;
};

// written gives a number as many decimals as it had of late, so that it does not jump about.
const written=(p,v)=>{
  if(typeof v==='boolean')return v?'true':'false';
  if(typeof v!=='number')return String(v).slice(0,200);
  const a=Math.abs(v);
  if(a>Number.MAX_SAFE_INTEGER)return'≈ '+v.toPrecision(12);
  if(a&&(a<1e-6||a>=1e12))return v.toPrecision(6);
  const most=a>=1000?1:a>=100?2:a>=1?3:6,s=String(v),dot=s.indexOf('.');
  const d=dot<0?0:Math.min(s.length-dot-1,most);
  p.digits=d>p.digits?d:Math.min(p.digits,most);
  return nf[p.digits].format(v);
};
const figure=(p,v)=>nf[Math.min(6,Math.max(p.digits,Math.abs(v)>=1000?1:Math.abs(v)>=1?2:4))].format(v);

// write is for all, also off the screen: a screen reader and a search find them there.
const write=(p)=>{
  const u=p.unit;
  if(p.bad){set(p.value,badWord(p.bad));set(p.uom,'')}
  else{set(p.value,p.v===undefined?'…':written(p,p.v));set(p.uom,Object.hasOwn(u.uom,p.name)?str(u.uom[p.name]):'')}
  // The column may grow, and never jumps back and forth.
  const wide=Math.min(p.value.$text.length+(p.bad?1:0),16);
  if(wide>p.wide){p.wide=wide;p.value.style.minWidth=wide*.56+'em'}
  state(p.button,p.bad?'bad':null);
};
const draw=(p,t)=>{
  const plain=typeof p.v==='string';
  if(p.canvas.hidden!==plain)p.canvas.hidden=plain;
  if(t-p.drawn<450&&!p.fresh){p.late=true;return}
  p.drawn=t;p.late=p.fresh=false;
  if(!plain)plot(p.canvas,p.series);
  if(p.detail)drawDetail(p);
};
const drawDetail=(p)=>{
  plot(p.detail.canvas,p.series,true);
  const s=p.series.summary(),f=(v)=>s?figure(p,v):'…';
  set(p.detail.lo,f(s&&s.lo));set(p.detail.mean,f(s&&s.mean));set(p.detail.hi,f(s&&s.hi));
};

// drawReadings shows what changed, at most PER_FRAME points; it says whether more waits.
const drawReadings=(t)=>{
  let n=0;
  for(const l of R.lines.values())for(const u of l.units.values())if(u.stale&&u.visible&&l.box.open){u.stale=false;for(const p of u.points.values()){p.fresh=true;R.dirty.add(p)}}
  for(const p of R.dirty){
    if(n>=PER_FRAME)return true;
    R.dirty.delete(p);
    write(p);n++;
    if(!p.unit.visible||!p.unit.line.box.open){p.unit.stale=true;continue}
    draw(p,t);
    if(p.late)late.add(p);
  }
  return false;
};
const late=new Set();

// tickReadings runs every second: ages, states, and the plots move on.
let ticks=0;
const tickReadings=()=>{
  const t=performance.now();
  for(const p of late)R.dirty.add(p);
  late.clear();
  ticks++;
  for(const l of R.lines.values()){
    let bad=0,warn=0;
    for(const u of l.units.values()){
      if(!u.known&&u.heard&&t-u.heard>FORGET){forget(l,u);continue}
      const how=u.state==='bad'?'bad':u.failed?'warn':u.heard?(u.state==='warn'?'warn':'ok'):u.state;
      if(how==='bad')bad++;else if(how==='warn')warn++;
      state(u.box,how);
      if(!u.visible)continue;
      const d=t-u.heard;
      set(u.age,u.state==='bad'||u.state==='warn'?u.word:!u.heard?'':d<1500?'now':span(d)+' ago');
      if(ticks%4===0)for(const p of u.points.values())R.dirty.add(p);
    }
    set(l.info,plural(l.units.size,'unit')+(bad?', '+bad+' silent':'')+(warn?', '+warn+' with errors':''));
    state(l.box,bad?'bad':warn?'warn':l.units.size?'ok':'wait');
  }
  set($('#readings-aside'),R.points?plural(R.points,'point')+(R.over?' (more are not shown)':''):'');
  $('#readings-empty').hidden=R.lines.size>0;
  $('#find').hidden=R.points<=12;
};
const forget=(l,u)=>{seen.unobserve(u.box);u.box.remove();R.units--;R.points-=u.points.size;for(const p of u.points.values())R.dirty.delete(p);l.units.delete(u.name)};

// statusUnits takes over what the status knows of the units.
const statusUnits=(doc)=>{
  for(const l of R.lines.values())for(const u of l.units.values())u.known=false;
  for(const l of arr(doc.lines)){
    if(!l||!str(l.name))continue;
    lineOf(l.name);
    for(const s of arr(l.units)){
      const u=s&&str(s.name)?unitOf(l.name,s.name):null;
      if(!u)continue;
      u.known=true;u.uom=obj(s.uom);
      [u.state,u.word]=unitState(s.state);
      if(l.state&&l.state!=='up'&&l.state!=='opening'){u.state='bad';u.word='line down'}
    }
    order(R.lines.get(l.name).grid,arr(l.units).map(s=>s&&R.lines.get(l.name).units.get(s.name)));
  }
  order($('#units'),arr(doc.lines).map(l=>l&&R.lines.get(l.name)));
};
// order puts what readings brought first where the configuration has it.
const order=(box,things)=>{
  let at=box.firstElementChild;
  for(const t of things)if(t){if(t.box===at)at=at.nextElementSibling;else box.insertBefore(t.box,at)}
};
const unitState=(s)=>s==='ok'?['ok','']:s==='missed'?['warn','missed a poll']:s==='degraded'?['bad','silent']:['wait',''];

// match hides what the filter does not find.
const match=(u)=>{
  const q=R.filter,whole=!q||(u.line.name+' '+u.name).toLowerCase().includes(q);
  let any=whole;
  for(const p of u.points.values()){const hit=whole||p.name.toLowerCase().includes(q);p.row.hidden=!hit;any=any||hit}
  u.box.hidden=!any;
  return any;
};
const filter=(q)=>{
  R.filter=q.trim().toLowerCase();
  let n=0;
  for(const l of R.lines.values()){
    let any=false;
    for(const u of l.units.values())if(match(u)){any=true;n++}
    l.box.hidden=!any;
    if(R.filter&&any)l.box.open=true;
    const first=$('.row:not([hidden])>.point',l.box);
    if(first)rove(l,first);
  }
  set($('#found'),R.filter?plural(n,'unit')+' found':'');
  schedule();
};

// One stop of the tab key for each line; the arrows move between its points.
const rove=(l,button)=>{if(l.stop)l.stop.tabIndex=-1;l.stop=button;button.tabIndex=0};
const keys=(e)=>{
  const b=e.target.closest&&e.target.closest('.point');
  if(!b)return;
  const all=[...b.closest('details').querySelectorAll('.point')].filter(x=>x.offsetParent);
  const i=all.indexOf(b),to={ArrowDown:i+1,ArrowUp:i-1,Home:0,End:all.length-1}[e.key];
  if(e.key==='Escape'&&b.$point.detail)toggle(b.$point);
  if(to===undefined||!all[to])return;
  e.preventDefault();
  rove(b.$point.unit.line,all[to]);all[to].focus();
};
const toggle=(p)=>{
  const open=!p.detail;
  attr(p.button,'aria-expanded',String(open));
  if(!open){p.detail.box.remove();p.detail=null;return}
  const canvas=el('canvas'),lo=el('b'),mean=el('b'),hi=el('b');
  attr(canvas,'aria-hidden','true');
  const box=el('div','detail',canvas,el('p','',el('span','','lowest ',lo),el('span','','mean ',mean),el('span','','highest ',hi)));
  p.detail={box,canvas,lo,mean,hi};
  p.row.append(box);
  drawDetail(p);
};
