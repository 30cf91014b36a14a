// The two streams, status and readings, come back by themselves after whatever ended them. An
// EventSource comes back from a lost connection, but not from an answer that is an error (the agent
// is away, and what stands before it says so): then a plain request finds out why, and tries again.
const QUIET=20000,HIDDEN=30000,FIRST_WAIT=1000,LAST_WAIT=5000;
const X={sources:{},wait:FIRST_WAIT,timer:0,poll:0,asking:false,away:0,gone:false};

const link=(how,text,hint)=>{
  if(M.link===how&&M.linkText===text&&M.linkHint===(hint||''))return;
  M.link=how;M.linkText=text;M.linkHint=hint||'';
  state($('#link'),how);
  set($('#link-text'),how==='ok'?'Live':how==='wait'?text:'Not live');
  schedule();
};

const open=()=>{
  for(const name of['events','readings']){
    const s=X.sources[name];
    if(s&&s.readyState!==2)continue;
    const source=X.sources[name]=new EventSource(name);
    source.onerror=()=>failed(name,source);
    if(name==='events'){
      source.addEventListener('status',e=>status(e.data));
      // What stands before the agent (ferrule status --web) tells that it is away, and holds the stream.
      source.addEventListener('agent',e=>{X.last=performance.now();explain(null,e.data)});
    }
    else{
      source.onmessage=e=>reading(e.data);
      source.addEventListener('missed',e=>{M.counts.missed+=Number(e.data)||0});
    }
  }
};
const close=()=>{for(const s of Object.values(X.sources))s.close();X.sources={};clearTimeout(X.timer);clearTimeout(X.poll)};

const failed=(name,source)=>{
  if(X.sources[name]!==source)return;
  if(source.readyState===2)source.close();
  if(M.link==='ok'&&name==='events')link('wait','Reconnecting');
  retry();
};
const retry=()=>{
  if(X.timer||X.gone)return;
  X.timer=setTimeout(()=>{X.timer=0;ask()},X.wait);
  X.wait=Math.min(X.wait*1.5,LAST_WAIT);
};

// ask gets the status once: it tells why a stream ended, and serves an agent that has no events.
const ask=async()=>{
  if(X.asking||X.gone)return;
  X.asking=true;
  let answer=null,text='';
  const stop=new AbortController(),timer=setTimeout(()=>stop.abort(),8000);
  try{answer=await fetch('status',{signal:stop.signal,cache:'no-store'});text=await answer.text()}catch{}
  clearTimeout(timer);
  X.asking=false;
  if(X.gone)return;
  if(answer&&answer.ok){status(text,true);open();return}
  explain(answer,text);
  retry();
};
const explain=(answer,text)=>{
  let said={};
  try{said=obj(JSON.parse(text))}catch{}
  if(!answer&&!text)return link('bad','Nobody answers','Is the gateway on, and is this device in its network? The page goes on trying.');
  if(answer&&(answer.status===401||answer.status===403))return link('bad',str(said.error)||'This page may not see the device',str(said.hint)||'Open it anew: ferrule status --web');
  link('bad',said.code==='not-running'?'The agent is not running':str(said.error)||'The agent does not answer',str(said.hint));
};

const status=(text,polled)=>{
  let d;
  try{d=JSON.parse(text)}catch{return}
  if(!d||typeof d!=='object'||Array.isArray(d))return;
  const at=time(obj(d.clock).now);
  if(!isNaN(at))M.skew=at-Date.now();
  if(M.boot!==null&&(M.boot!==d.boot||M.started!==d.started)){M.rates=[];M.history.push({at:d.started||d.clock&&d.clock.now,stage:'stopped',restarted:true})}
  M.boot=d.boot;M.started=d.started;
  M.doc=d;M.heard=Date.now()+M.skew;X.last=performance.now();X.wait=FIRST_WAIT;
  statusUnits(d);measure(d);
  M.fresh=true;
  link('ok','Live');
  schedule();
  clearTimeout(X.poll);
  const events=X.sources.events;
  if(polled&&!(events&&events.readyState===1))X.poll=setTimeout(()=>{if(!(X.sources.events&&X.sources.events.readyState===1))ask()},2000);
};

// watch finds a connection that died without a word, as after a phone's sleep.
const watch=()=>{
  if(document.hidden||X.gone||performance.now()-(X.last||0)<QUIET)return;
  X.last=performance.now();
  if(M.link==='ok')link('wait','Reconnecting');
  close();ask();
};
const visible=()=>{
  clearTimeout(X.away);
  if(document.hidden)X.away=setTimeout(()=>{X.gone=true;close()},HIDDEN);
  else if(X.gone){X.gone=false;X.timer=0;link('wait','Reconnecting');ask()}
};
