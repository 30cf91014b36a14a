// The path of a reading: line → outbox → session → broker, with what goes through each second.
const RATE_WINDOW=8000;
const measure=(doc)=>{
  const t=performance.now(),o=obj(doc.outbox),s=obj(doc.session);
  M.rates.push({t,appended:num(o.appended),acked:num(s.acked),entries:M.counts.entries,values:M.counts.values,oacked:num(o.acked)});
  while(M.rates.length>2&&t-M.rates[0].t>RATE_WINDOW)M.rates.shift();
};
const perSecond=(what)=>{
  const r=M.rates;
  if(r.length<2)return 0;
  const a=r[0],b=r[r.length-1],dt=(b.t-a.t)/1000;
  return dt>0.4?Math.max(0,(b[what]-a[what])/dt):0;
};

const node=(name,how,figure,more)=>{const n=$('#path [data-node="'+name+'"]');state(n,how);set($('.figure',n),figure);set($('.more',n),more);return n};
const pipe=(name,how,flow)=>{
  const p=$('#path [data-node="'+name+'"] .pipe');
  state(p,how);
  const moving=flow>0?'yes':'no';
  attr(p,'data-moving',moving);
  // A few steps of speed only: every change of it makes the dots jump.
  const speed=flow>50?0.5:flow>10?0.8:flow>2?1.2:2;
  if(p.$speed!==speed){p.$speed=speed;p.style.setProperty('--speed',speed+'s')}
};

const showPath=()=>{
  const d=M.doc;
  if(!d)return;
  const lines=arr(d.lines),o=obj(d.outbox),s=obj(d.session);
  const upLines=lines.filter(l=>l&&l.state==='up').length;
  const silent=lines.some(l=>arr(l&&l.units).some(u=>u&&u.state==='degraded'));
  const inRate=perSecond('appended'),outRate=perSecond('acked'),values=perSecond('values');
  const up=s.stage==='up'||s.stage==='suback';
  const lineState=!lines.length?'wait':upLines<lines.length||silent?'bad':'ok';
  node('lines',lineState,upLines+' of '+lines.length+' up',values>0?rate(values)+' readings/s':inRate>0?rate(inRate)+' polls/s':'');
  const backlog=o.oldest_age_s>30;
  node('outbox',o.problem?'bad':backlog?'warn':'ok',count(o.depth)+' waiting',o.depth>0&&o.oldest_age_s>=1?'oldest '+span(o.oldest_age_s*1000):rate(inRate)+' entries/s');
  const since=time(s.since),how=stageState(s.stage);
  const next=time(s.next_attempt)-now();
  node('session',how==='wait'&&s.last_failure&&s.attempts>0?'bad':how,up?'Up':stageWord(s.stage),up&&!isNaN(since)?'for '+span(now()-since):s.stage==='waiting'&&next>0?'again in '+span(next):num(s.attempts)?'attempt '+count(s.attempts+1):'');
  const broker=node('broker',up?'ok':'wait',brokerName(s.broker)||'None yet',up?rate(outRate)+' messages/s':'no session');
  broker.title=str(s.broker);
  pipe('lines',upLines?'ok':'bad',inRate);
  pipe('outbox',up?'ok':'bad',up?Math.max(outRate,perSecond('oacked')):0);
  pipe('session',up?'ok':'bad',up?outRate:0);
  attr($('#path'),'aria-label','The path of a reading: '+upLines+' of '+lines.length+' lines up, '+count(o.depth)+' entries wait, session '+stageWord(s.stage).toLowerCase()+', '+rate(outRate)+' messages per second');
};
const brokerName=(url)=>str(url).replace(/^[a-z]+:\/\//,'').replace(/[/?].*$/,'').replace(/:\d+$/,'');
