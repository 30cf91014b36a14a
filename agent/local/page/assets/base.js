// What all parts use: elements, words for figures, and the state of the page.
// Foreign text goes in by textContent and append(string) alone.
const $=(q,from=document)=>from.querySelector(q);
const root=document.documentElement;
const el=(tag,cls,...kids)=>{const e=document.createElement(tag);if(cls)e.className=cls;e.append(...kids);return e};
const icon=(name)=>{
  const ns='http://www.w3.org/2000/svg',s=document.createElementNS(ns,'svg'),u=document.createElementNS(ns,'use');
  u.setAttribute('href','#i-'+name);s.setAttribute('aria-hidden','true');s.append(u);return s;
};
// set writes only what changed: most of a status is as it was a second ago.
const set=(e,text)=>{text=text==null?'':String(text);if(e.$text!==text){e.$text=text;e.textContent=text}};
const attr=(e,name,v)=>{if(v==null||v===false){if(e.hasAttribute(name))e.removeAttribute(name)}else if(e.getAttribute(name)!==String(v))e.setAttribute(name,v)};
const state=(e,v)=>attr(e,'data-state',v);

// reconcile makes the children of e those of items, in order, and keeps the elements of keys that stay.
const reconcile=(e,items,key,make,update)=>{
  const known=e.$known||(e.$known=new Map()),seen=new Set();
  let at=e.firstElementChild;
  for(const item of items){
    const k=key(item);
    if(seen.has(k))continue;
    seen.add(k);
    let child=known.get(k);
    if(!child){child=make(item);known.set(k,child)}
    if(child===at)at=at.nextElementSibling;else e.insertBefore(child,at);
    update(child,item);
  }
  for(const[k,child]of known)if(!seen.has(k)){child.remove();known.delete(k)}
};

// facts fills a list of terms: rows of [term, value, state?, note?]; rows without a value are left out.
const facts=(section,rows)=>reconcile($('dl.facts',$('#'+section)),rows.filter(r=>r&&r[1]!=null&&r[1]!==''&&r[1]!==false),
  r=>r[0],
  ()=>{const d=el('div','',el('dt'),el('dd','',el('bdi')));return d},
  (d,[term,value,how,note])=>{
    set(d.firstChild,term);set(d.lastChild.firstChild,value);state(d,how);
    let n=$('small',d);
    if(note&&!n)d.lastChild.append(n=el('small'));
    if(n)set(n,note||'');
  });
const chip=(section,how,word)=>{const c=$('#'+section+'>header .chip');state(c,how);set(c,word);const a=$('.jump a[href="#'+section+'"]');state(a,how)};

// Model is what the page knows.
const M={doc:null,heard:0,skew:0,boot:null,link:'wait',linkText:'',linkHint:'',history:[],rates:[],counts:{values:0,entries:0,missed:0,foreign:0}};
const now=()=>Date.now()+M.skew;
const time=(s)=>{const t=typeof s==='string'?Date.parse(s):NaN;return t>0?t:NaN};
const obj=(v)=>v&&typeof v==='object'?v:{};
const arr=(v)=>Array.isArray(v)?v:[];
const num=(v)=>typeof v==='number'&&isFinite(v)?v:0;
const str=(v)=>typeof v==='string'?v:'';

// Words.
const nf=[0,1,2,3,4,5,6].map(d=>new Intl.NumberFormat('en',{minimumFractionDigits:d,maximumFractionDigits:d}));
const count=(n)=>nf[0].format(num(n));
const plural=(n,one,many)=>count(n)+' '+(n===1?one:many||one+'s');
const size=(n)=>{n=num(n);const u=['B','KiB','MiB','GiB','TiB'];let i=0;while(n>=1024&&i<4){n/=1024;i++}return nf[i&&n<100?1:0].format(n)+' '+u[i]};
const rate=(n)=>n>=100?count(n):n>=0.095?nf[1].format(n):n>0.0005?nf[2].format(n):'0';
const span=(ms)=>{
  const s=Math.abs(ms)/1000;
  if(s<0.9995)return Math.round(s*1000)+' ms';
  if(s<9.95)return nf[1].format(s)+' s';
  if(s<90)return Math.round(s)+' s';
  if(s<5400)return Math.round(s/60)+' min';
  if(s<129600)return nf[s<36000?1:0].format(s/3600).replace('.0','')+' h';
  return plural(Math.floor(s/86400),'day');
};
const ago=(s)=>{const t=time(s);if(isNaN(t))return'';const d=now()-t;return d<1500?'just now':span(d)+' ago'};
const day=(s)=>{const t=time(s);return isNaN(t)?'':new Date(t).toISOString().slice(0,10)};
const two=(n)=>String(n).padStart(2,'0');
const clock=(s)=>{
  const t=time(s);if(isNaN(t))return'';
  const d=new Date(t),c=two(d.getHours())+':'+two(d.getMinutes())+':'+two(d.getSeconds());
  return Math.abs(now()-t)<72e6?c:d.getFullYear()+'-'+two(d.getMonth()+1)+'-'+two(d.getDate())+' '+c;
};
const short=(hex)=>str(hex).length>16?hex.slice(0,8)+'…'+hex.slice(-6):str(hex);
const listCounts=(o)=>Object.entries(obj(o)).filter(([,n])=>n>0).sort((a,b)=>b[1]-a[1]);
const worst=(states)=>states.includes('bad')?'bad':states.includes('warn')?'warn':states.includes('wait')?'wait':'ok';

const STAGES={
  stopped:['Stopped','wait'],waiting:['Waits to try again','bad'],dns:['Looks up the broker','wait'],tcp:['Connects','wait'],
  proxy:['Asks the proxy','wait'],tls:['Shakes hands','wait'],websocket:['Opens the WebSocket','wait'],connack:['Asks the broker in','wait'],
  suback:['Subscribes','ok'],up:['Up','ok'],stopping:['Stops','wait'],rotate:['Changes certificate','wait'],
};
const stageWord=(s)=>(STAGES[s]||[str(s)||'Unknown'])[0];
const stageState=(s)=>(STAGES[s]||['','wait'])[1];
const SIDES={device:'on this device',broker:"at the broker",network:'in the network between'};
