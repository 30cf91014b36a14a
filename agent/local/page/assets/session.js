// The session: how it is, why it failed, and what happened to it.
const JOINING={dns:1,tcp:1,proxy:1,tls:1,websocket:1,connack:1,suback:1};
const showSession=(d)=>{
  const s=obj(d.session),up=s.stage==='up'||s.stage==='suback';
  const failing=!up&&s.last_failure&&num(s.attempts)>0;
  chip('session',failing?'bad':up&&s.subscribed===false&&s.stage==='up'?'warn':stageState(s.stage),stageWord(s.stage));
  showFailure(s);
  const wire=obj(s.wire),sent=num(wire.sent),got=num(wire.received);
  const way=obj(s.path),tls=[s.tls_version,str(s.cipher).replace(/^TLS_/,'')].filter(Boolean).join(', ');
  const families={ipv4:'IPv4',ipv6:'IPv6'};
  const lost=arr(way.raced).filter(a=>a&&a.error).length;
  const through=[way.proxy?'proxy '+way.proxy:'',way.websocket?'WebSocket':'',way.alpn?'ALPN '+way.alpn:''].filter(Boolean).join(', ');
  facts('session',[
    ['Broker',s.broker,null,[way.address||s.address,families[way.family],lost?plural(lost,'other address','other addresses')+' lost the race':''].filter(Boolean).join(', ')],
    ['Through',through],
    ['Opened on the way by',way.inspected,'warn','this authority vouched for the broker in its stead'],
    ['Security',tls,null,[way.group,way.post_quantum?'withstands quantum computers':''].filter(Boolean).join(', ')],
    ['Post-quantum share',time(way.classic_until)>now()?'left out for this broker':null,'warn','it does not answer handshakes with it; tried again on '+day(way.classic_until)],
    [up?'Up for':'Since',s.since?up?span(now()-time(s.since)):ago(s.since):null,null,num(s.connects)?plural(s.connects,'connection')+(num(s.resumed)?', '+count(s.resumed)+' resumed without the key':''):''],
    ['Next attempt',s.stage==='waiting'&&time(s.next_attempt)>now()?'in '+span(time(s.next_attempt)-now()):null,null,num(s.attempts)?plural(s.attempts,'attempt')+' so far':''],
    ['Published',plural(s.published,'message')],
    ['Acknowledged',count(s.acked),null,(num(s.in_flight)?count(s.in_flight)+' in flight':'')+(num(s.resent)?(num(s.in_flight)?', ':'')+count(s.resent)+' sent again':'')],
    ['On the wire',sent||got?size(sent)+' sent, '+size(got)+' received':null],
    ['For each reading',num(obj(d.wire).bytes_per_reading)?size(d.wire.bytes_per_reading)+' sent':null,null,[str(obj(d.wire).encoding),'TLS, MQTT and all reconnects included'].filter(Boolean).join(', ')],
    ['Held off until',time(s.held_off)>now()?clock(s.held_off):null,'bad',plural(s.takeovers,'takeover')+' by another client'],
    ['Session lost',num(s.sessions_lost)?plural(s.sessions_lost,'time'):null,'warn','the broker should have kept it'],
    ['Skipped messages',arr(s.quarantined).length?arr(s.quarantined).map(q=>str(obj(q).topic)).join(', '):null,'warn','each ended three connections'],
    ['Set aside',num(s.set_aside)?plural(s.set_aside,'entry','entries'):null,'warn','each ended three connections'],
    ['Certificates changed',num(s.rotations)?count(s.rotations):null],
  ]);
  showBudget(obj(s.budget));
  showHistory(s);
};

const showBudget=(b)=>{
  const box=$('#budget'),limit=num(b.limit),used=num(b.spent);
  box.hidden=!limit;
  if(!limit)return;
  if(!box.firstChild){box.append(el('div','meter',el('i')),el('span','mute'));attr(box.firstChild,'role','meter');attr(box.firstChild,'aria-label','Budget of today');attr(box.firstChild,'aria-valuemin',0);attr(box.firstChild,'aria-valuemax',100)}
  const share=Math.min(100,used/limit*100);
  state(box.firstChild,b.used_up?'bad':share>80?'warn':'ok');
  attr(box.firstChild,'aria-valuenow',Math.round(share));
  $('i',box).style.setProperty('--share',share+'%');
  set(box.lastChild,'Budget of today: '+size(used)+' of '+size(limit)+(b.used_up?', readings wait'+(time(b.continues)>now()?' for '+span(time(b.continues)-now()):''):''));
};

const showFailure=(s)=>{
  const box=$('#failure'),f=s.last_failure;
  box.hidden=!f||!str(f.text);
  if(box.hidden)return;
  const up=s.stage==='up'||s.stage==='suback';
  state(box,up?'past':'bad');
  if(!box.firstChild)box.append(el('h3'),el('p'),el('p','repair',icon('tool'),el('span')),el('p','mute'));
  set(box.children[0],(up?'Last failure, now past: ':'')+failureTitle(f));
  set(box.children[1],f.text);
  const words=(SIDES[f.side]?'Repair '+SIDES[f.side]+(f.hint?': ':''):'')+str(f.hint);
  set(box.children[2].lastChild,words);box.children[2].hidden=!words;
  set(box.children[3],[ago(f.at),'stage '+str(f.stage),'cause '+str(f.cause)].filter(Boolean).join(', '));
};

// remember keeps a history of our own, for an agent that gives none.
const remember=(s)=>{
  const h=M.history,last=h[h.length-1];
  if(last&&last.stage===s.stage&&(!s.since||last.at===s.since))return;
  const f=obj(s.last_failure);
  h.push({at:s.since||new Date(now()).toISOString(),stage:s.stage,broker:s.broker,...(s.stage==='waiting'?{cause:f.cause,text:f.text,hint:f.hint,failed:f.stage}:{})});
  if(h.length>64)h.shift();
};

// attempts joins the stages of one way up into one row: steps, and how it ended.
const attempts=(history)=>{
  const rows=[];
  let row=null;
  for(const e of history){
    if(!e||isNaN(time(e.at)))continue;
    if(JOINING[e.stage]&&!e.cause&&!e.text){row=row||{at:e.at,steps:[]};row.steps.push(e);row.broker=e.broker||row.broker;continue}
    const before=rows[rows.length-1];
    if(e.stage==='waiting'&&!e.text&&!row&&before&&(before.end.text||before.end.cause)&&time(e.at)-time(before.end.at)<2000)continue;
    row=row||{at:e.at,steps:[]};
    row.end=e;row.broker=e.broker||row.broker;
    rows.push(row);row=null;
  }
  if(row)rows.push(row);
  return rows;
};

let whole=false;
const showHistory=(s)=>{
  const given=arr(s.history);
  if(!given.length)remember(s);
  const history=(given.length?given:M.history).filter(e=>e&&str(e.stage)).slice(-64);
  // The history names causes; the words are with the last failure.
  const f=obj(s.last_failure),told=history.findLastIndex(e=>e.cause&&e.cause===f.cause);
  const rows=attempts(history.map((e,i)=>i===told&&!e.text?{...e,text:f.text,hint:f.hint}:e)).reverse();
  reconcile($('#story'),rows.slice(0,whole?64:5),r=>r.at+(r.end?r.end.stage:''),makeRow,updateRow);
  const more=$('#story-more');
  more.hidden=rows.length<=5;
  set(more,whole?'Show less':'Show all '+rows.length);
  showRibbon(history);
};
const makeRow=()=>el('li','',el('i','dot'),el('div','',el('p','what',el('b'),el('time')),el('p','why'),el('p','repair'),el('div','steps')));
const updateRow=(li,r)=>{
  const e=r.end,failed=e&&(e.text||e.cause),last=r.steps[r.steps.length-1];
  const start=time(r.at),end=e?time(e.at):now();
  const joined=e&&e.stage==='up'&&r.steps.length;
  state(li,!e?'wait':failed?'bad':e.stage==='up'?'ok':'wait');
  const box=li.lastChild,[what,why,repair,steps]=box.children;
  set(what.firstChild,!e?stageWord(last&&last.stage)+' …':failed?failureTitle({stage:e.failed||(e.stage==='waiting'&&last?last.stage:e.stage),cause:e.cause}):joined?'Up in '+span(end-start):stageWord(e.stage));
  set(what.lastChild,clock(r.at));attr(what.lastChild,'datetime',r.at);
  set(why,[failed?e.text:'',r.broker?brokerName(r.broker):''].filter(Boolean).join(' · '));why.hidden=!why.$text;
  const hint=failed?str(e.hint):'';
  if(repair.$said!==hint){repair.$said=hint;repair.replaceChildren(...(hint?[icon('tool'),hint]:[]))}
  repair.hidden=!hint;
  const parts=r.steps.map((x,i)=>({stage:x.stage,ms:(i+1<r.steps.length?time(r.steps[i+1].at):end)-time(x.at)})).filter(x=>x.ms>=0);
  steps.hidden=parts.length<2;
  const total=parts.reduce((n,x)=>n+x.ms,0)||1;
  reconcile(steps,parts,(x)=>x.stage,()=>el('span'),(n,x)=>{n.style.flexGrow=Math.max(x.ms/total,0.02);const words=x.stage+' '+span(x.ms);set(n,x.ms/total>0.2?words:'');n.title=words});
};

// The ribbon: up, trying and waiting over the time that the history covers.
const kind=(stage)=>stage==='up'||stage==='suback'?'ok':stage==='waiting'||stage==='stopped'?'bad':'wait';
const showRibbon=(history)=>{
  const box=$('#ribbon'),t=now();
  const first=history.length?time(history[0].at):NaN;
  box.hidden=!(t-first>0);
  if(box.hidden)return;
  const parts=[];
  let upTime=0;
  history.forEach((e,i)=>{
    const from=time(e.at),to=i+1<history.length?time(history[i+1].at):t,k=kind(e.stage),last=parts[parts.length-1];
    if(!(to>from))return;
    if(k==='ok')upTime+=to-from;
    if(last&&last.k===k)last.ms+=to-from;else parts.push({k,ms:to-from,id:from});
  });
  reconcile(box,parts,p=>p.id,()=>el('i'),(n,p)=>{state(n,p.k);n.style.flexGrow=Math.max(p.ms/(t-first),0.004)});
  const words='Up '+nf[1].format(upTime/(t-first)*100)+' % of the last '+span(t-first);
  attr(box,'aria-label',words);box.title=words;
};
