// The verdict: is all well, and if not, what is wrong and what to do. A problem is
// {how: bad|warn|note, title, text, repair, side, part}; a note does not spoil the verdict.
const FAILED={
  dns:"The broker's name cannot be looked up",tcp:'The broker cannot be reached',proxy:'The proxy does not let us through',
  tls:'The TLS handshake fails',websocket:'The WebSocket does not open',connack:'The broker does not let us in',
  suback:'The broker refuses the subscription',up:'The connection was lost',rotate:'The new certificate was not taken',
};
const CAUSES={
  name:"The broker's name has no address",dns:'The name server gives no answer',refused:'Nothing listens at the broker',
  unreachable:'There is no way to the broker',stalled:'The broker does not answer in time',closed:'The broker hung up without a word',
  'certificate-required':'The broker got no certificate from us','handshake-refused':'The broker ends the handshake without a reason',
  'certificate-not-acceptable':'Our certificate is of no authority that the broker takes',
  'certificate-unknown-ca':'The broker does not know who signed our certificate','certificate-expired':'Our certificate has expired, says the broker',
  'certificate-revoked':'Our certificate was revoked','certificate-refused':'The broker refuses our certificate',key:'Our key did not sign',
  'broker-unknown-ca':"We do not know who signed the broker's certificate",'broker-name':"The broker's certificate is for another name",
  'broker-expired':"The broker's certificate has expired",'broker-invalid':"The broker's certificate is not valid",'broker-revoked':"The broker's certificate was revoked",
  'broker-revocation-unknown':"Nobody can tell whether the broker's certificate was revoked",clock:'Our clock is wrong',
  'tls-version':'No common version of TLS',plaintext:'The port does not speak TLS',inspected:'Somebody on the way opens TLS',alpn:'No common application protocol',
  'proxy-unreachable':'The proxy is not reached','proxy-auth':'The proxy wants another login','proxy-refused':'The proxy does not let us through',
  'proxy-no-way':'The proxy does not reach the broker','not-a-proxy':'This is no proxy','not-websocket':'The broker opens no WebSocket',
  'not-authorized':'The broker does not authorise this device','client-id':'The broker refuses our name','duplicate-identity':'Another client uses our name',
  unavailable:'The broker is not available','too-large':'The broker sent too large a message',subscription:'The broker refuses the subscription',
  frozen:'The link was up, and nothing moved on it','no-ack':'The broker acknowledges nothing','command-flood':'Too many commands came','entry-set-aside':'An entry was set aside',
};
const failureTitle=(f)=>(Object.hasOwn(CAUSES,str(f.cause))&&CAUSES[f.cause])||(Object.hasOwn(FAILED,str(f.stage))&&FAILED[f.stage])||'The session failed';

const problems=(d)=>{
  const out=[],add=(part,how,title,text,repair,side)=>out.push({part,how,title,text:str(text),repair:str(repair),side:SIDES[side]||''});
  const id=obj(d.identity),s=obj(d.session),o=obj(d.outbox);
  sessionProblems(add,d,s);
  if(id.alarm)add('identity',/expires/.test(id.alarm)?'warn':'bad','The certificate needs attention',id.alarm,obj(id.last_attempt).hint);
  if(id.problem)add('identity','warn','The identity cannot be stored',id.problem);
  const a=obj(id.last_attempt);
  if(a.error&&!id.alarm)add('identity','warn','The last renewal failed',a.error,a.hint);
  if(id.weak)add('identity','note','The key is a file that can be copied','A key in a TPM cannot be.');
  if(obj(id.tpm).in_lockout)add('identity','bad','The TPM is locked out','','See: ferrule tpm');
  if(o.problem)add('outbox','bad','The disk does not take readings',o.problem+'. They wait in memory.');
  if(o.dropped>0)add('outbox','warn',plural(o.dropped,'entry was','entries were')+' lost','The outbox was full. The ranges are listed in: ferrule status --json');
  lineProblems(add,d);
  const c=obj(d.clock);
  if(c.trusted===false)add('update','warn','The clock is not synchronised','Readings are marked as unsynced.','Let the gateway reach a time server (NTP).');
  if(id.clock_note)add('identity','warn','The clocks disagree',id.clock_note);
  const z=obj(d.authorize);
  if(z.problem)add('commands','warn','Single use of authorisations is not certain',z.problem);
  if(obj(d.audit).problem)add('trust','warn','The audit log cannot be written',d.audit.problem);
  const r=obj(obj(obj(d.trust).revocation).last);
  if(r.refused)add('trust','bad',"The broker's certificate is refused",r.why);
  const config=obj(d.config),last=obj(config.last),near=obj(d.local);
  if(config.trial)add('update','note','A configuration is on trial','It is kept if it works; else the old one returns at '+clock(obj(config.trial).deadline)+'.');
  else if(last.outcome&&last.outcome!=='kept'&&now()-time(last.at)<864e5)add('update','warn','The last configuration from afar was not kept',last.detail||last.reason);
  if(near.problem||obj(near.listener).problem)add('update','warn','The local listener does not serve',near.problem||near.listener.problem);
  const up=obj(d.update),goal=obj(up.target);
  if(up.unusable||up.problem)add('update','warn','Updates cannot be made',up.unusable||up.problem,up.hint);
  else if(up.state==='trial')add('update','note','Version '+goal.version+' is on trial','It is kept if it proves healthy; else the one before returns.');
  else if(up.state==='idle'&&goal.version&&goal.version!==up.version)add('update','warn','Version '+goal.version+' was not kept',up.reason,up.advice);
  if(obj(up.metadata).alarm)add('update','warn','News of updates may be held back',up.metadata.alarm);
  const rank={bad:0,warn:1,note:2};
  return out.sort((x,y)=>rank[x.how]-rank[y.how]);
};

const sessionProblems=(add,d,s)=>{
  const f=s.last_failure;
  const young=now()-time(d.started)<15000&&num(s.attempts)<2;
  if(s.stage!=='up'&&s.stage!=='suback'){
    // What failed before the session was up the last time is not why it is down now.
    if(f&&f.text)add('session','bad',failureTitle(f),f.text,f.hint,f.side);
    else if(!young)add('session',s.stage==='stopped'?'bad':'warn','The session is not up',stageWord(s.stage));
  }else if(s.stage==='up'&&s.subscribed===false)add('session','warn','Commands are not heard',f&&f.stage==='suback'?f.text:'The broker has not taken the subscription.',f&&f.stage==='suback'?f.hint:'');
  const budget=obj(s.budget),q=arr(s.quarantined).length;
  if(budget.used_up)add('session','warn','The budget of today is used up','Readings wait'+(time(budget.continues)>now()?' until '+clock(budget.continues):'')+'.');
  if(q)add('session','warn',plural(q,'message')+' of the broker '+(q===1?'is':'are')+' skipped','Each ended three connections: '+s.quarantined.map(x=>str(obj(x).topic)||'?').slice(0,4).join(', '),'Remove it from the broker, or raise session.max_inbound');
};

const lineProblems=(add,d)=>{
  const silent=[],missed=[];
  for(const l of arr(d.lines)){
    if(!l)continue;
    if(l.state==='reopening'||l.state==='stopped')add('lines','bad','Line '+str(l.name)+' is down',l.problem||l.state);
    else for(const u of arr(l.units))if(u&&u.state==='degraded')silent.push([l,u]);else if(u&&u.state==='missed')missed.push([l,u]);
  }
  const name=([l,u])=>str(u.name)+' on '+str(l.name);
  if(silent.length===1)add('lines','bad',name(silent[0])+' is silent',silent[0][1].last_error);
  else if(silent.length)add('lines','bad',silent.length+' units are silent',silent.slice(0,6).map(name).join(', ')+(silent.length>6?' …':''));
  if(missed.length)add('lines','note',missed.length===1?name(missed[0])+' missed a poll':missed.length+' units missed a poll',missed.slice(0,6).map(([,u])=>str(u.last_error)).filter((x,i,l)=>x&&l.indexOf(x)===i).join('; '));
};

const showVerdict=()=>{
  const hero=$('#overview'),d=M.doc;
  let how,title,text,list=[];
  if(M.link!=='ok'&&(M.link==='bad'||!d)){
    how=M.link==='bad'?'bad':'wait';
    title=M.link==='bad'?M.linkText:'Asking the agent';
    text=M.link!=='bad'?'One moment.':d?'What is shown is from '+ago(new Date(M.heard).toISOString())+'.':'';
    if(M.link==='bad'&&M.linkHint)list=[{how:'bad',title:'What to do',text:'',repair:M.linkHint,side:'',part:''}];
  }else{
    list=problems(d);
    const serious=list.filter(p=>p.how!=='note');
    const stage=obj(d.session).stage;
    if(!serious.length){
      const up=stage==='up'||stage==='suback';
      how=up?'ok':'wait';
      title=up?'All is well':stageWord(stage);
      text=up?wellText(d):'The session is being made.';
    }else{
      const first=serious[0],rest=serious.length-1;
      how=first.how;title=first.title;
      text=rest?'And '+plural(rest,'more thing needs','more things need')+' attention.':how==='bad'?'The rest is well.':'Everything else is well.';
    }
  }
  state(hero,how);state(root,M.link==='ok'?'live':'stale');
  set($('#verdict'),title);set($('#verdict-text'),text);
  attr($('#badge'),'href','#i-'+how);
  reconcile($('#problems'),list,p=>p.part+p.title,makeProblem,updateProblem);
  $('#problems').hidden=!list.length;
  showTab(how,d);
};
const wellText=(d)=>{
  const lines=arr(d.lines),units=lines.reduce((n,l)=>n+arr(l&&l.units).length,0);
  const o=obj(d.outbox);
  const say=plural(lines.length,'line')+', '+plural(units,'unit')+'. ';
  return say+(o.oldest_age_s>30?'A backlog of '+plural(o.depth,'entry','entries')+' is on its way.':'Every reading reaches the broker.');
};
const PARTS={lines:'the lines',session:'the session',outbox:'the outbox',identity:'the identity',commands:'the commands',trust:'trust and audit',update:'the agent'};
const makeProblem=()=>el('li','',el('span','mini'),el('div','',el('b'),el('p'),el('p','repair'),el('a','more','Show')));
const updateProblem=(li,p)=>{
  state(li,p.how);
  const[mini,box]=li.children,link=box.lastChild;
  const name=p.how==='note'?'wait':p.how;
  if(mini.$name!==name){mini.$name=name;mini.replaceChildren(icon(name))}
  set(box.children[0],p.title);set(box.children[1],p.text);
  // The first one is the headline already.
  box.children[0].hidden=p.title===$('#verdict').$text&&!!(p.text||p.repair);
  box.children[1].hidden=!p.text;
  const repair=box.children[2];
  const words=(p.side?'Repair '+p.side+(p.repair?': ':'.'):'')+p.repair;
  if(repair.$said!==words){repair.$said=words;repair.replaceChildren(icon('tool'),words)}
  repair.hidden=!words;
  link.hidden=!p.part;set(link,'Show '+(PARTS[p.part]||''));link.href='#'+p.part;
};

// The tab tells it too: by its title and by its icon.
const ICONS={ok:['2f9e6e','M9 16.5l5 5 9-11'],warn:['d08a1d','M16 8v10M16 23v.1'],bad:['d3483b','M11 11l10 10M21 11L11 21'],wait:['8a8378','M10 16v.1M16 16v.1M22 16v.1']};
const showTab=(how,d)=>{
  const mark={ok:'✓ ',warn:'! ',bad:'✗ ',wait:''}[how];
  const title=mark+(str(d&&d.device)||'Ferrule');
  if(document.title!==title)document.title=title;
  const link=$('#icon');
  if(link.$how===how)return;
  link.$how=how;
  const[colour,path]=ICONS[how];
  link.href='data:image/svg+xml,'+encodeURIComponent('<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><circle cx="16" cy="16" r="15" fill="#'+colour+'"/><path d="'+path+'" fill="none" stroke="#fff" stroke-width="3.5" stroke-linecap="round" stroke-linejoin="round"/></svg>');
};
