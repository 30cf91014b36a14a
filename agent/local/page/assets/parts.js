// The cards beside the readings, each from its part of the status.
const showLines=(d)=>{
  const lines=arr(d.lines).filter(l=>l&&str(l.name));
  reconcile($('#line-list'),lines,l=>l.name,makeLine,updateLine);
  const how=worst(lines.map(lineState));
  const up=lines.filter(l=>l.state==='up').length;
  chip('lines',lines.length?how:'wait',lines.length?up+' of '+lines.length+' up':'none');
};
const lineState=(l)=>l.state==='reopening'||l.state==='stopped'?'bad':l.state==='opening'?'wait':arr(l.units).some(u=>u&&u.state==='degraded')?'warn':'ok';
const makeLine=()=>{
  const li=el('div','port',
    el('div','top',el('i','dot'),el('b','',el('bdi')),el('span','mute')),
    el('p','mute where'),
    el('div','meter',el('i'),el('span')),
    el('p','counts'),el('p','problem'),el('div','units'));
  const m=$('.meter',li);attr(m,'role','meter');attr(m,'aria-valuemin',0);attr(m,'aria-valuemax',100);
  return li;
};
const updateLine=(li,l)=>{
  state(li,lineState(l));
  set($('bdi',li),l.name);
  set($('.top .mute',li),l.state);
  set($('.where',li),[l.protocol,l.settings,l.port].filter(Boolean).join(' · '));
  const meter=$('.meter',li),load=num(l.load_percent),master=!l.role||l.role==='master';
  meter.hidden=!master;
  attr(meter,'aria-valuenow',Math.round(load));attr(meter,'aria-label','Load of line '+l.name);
  state(meter,load>90?'bad':load>75?'warn':'ok');
  $('i',meter).style.setProperty('--share',Math.min(100,load)+'%');
  set($('span',meter),nf[load<10?1:0].format(load)+' % load');
  const p=[plural(l.polls,'poll')];
  if(num(l.p50_ms))p.push('answers in '+span(l.p50_ms)+(l.p95_ms>l.p50_ms*1.2?' to '+span(l.p95_ms):''));
  if(num(l.missed_slots))p.push(count(l.missed_slots)+' left out: the line was busy');
  showErrors($('.counts',li),p.join(', '),l.errors,l.uart);
  const problem=$('.problem',li);
  set(problem,l.problem||(l.last_error?l.last_error+(l.last_error_at?' ('+ago(l.last_error_at)+')':''):''));
  problem.hidden=!problem.$text;
  const off=arr(l.units).filter(u=>u&&str(u.name)&&(u.state!=='ok'||listCounts(u.errors).length));
  reconcile($('.units',li),off.slice(0,60),u=>u.name,()=>el('div','unit-line',el('i','dot'),el('bdi'),el('p','counts'),el('p','mute')),(e,u)=>{
    const[how,word]=unitState(u.state);
    state(e,how);set(e.children[1],u.name);
    showErrors(e.children[2],word||(u.state==='new'?'not heard yet':''),u.errors);
    set(e.children[3],u.last_error?u.last_error+(u.last_error_at?' ('+ago(u.last_error_at)+')':'')+(u.state==='degraded'&&u.next_probe&&time(u.next_probe)>now()?', asked again in '+span(time(u.next_probe)-now()):''):'');
  });
};
// Errors by kind, as small labels; those that came in the last minute stand out.
const recent=new WeakMap();
const showErrors=(box,text,errors,uart)=>{
  const kinds=listCounts(errors).concat(listCounts(uart).filter(([k])=>/err|overrun|frame|parity|brk|break/.test(k)).map(([k,n])=>['UART '+k,n]));
  let text0=box.$lead;
  if(!text0)box.prepend(text0=box.$lead=el('span'));
  set(text0,text);
  let memory=recent.get(box);
  if(!memory)recent.set(box,memory=new Map());
  const list=box.$list||(box.append(box.$list=el('span','kinds')),box.$list);
  reconcile(list,kinds,k=>k[0],()=>el('span','kind',el('b'),' ',el('span')),(e,[kind,n])=>{
    const m=memory.get(kind)||{n,at:0};
    if(n>m.n){m.n=n;m.at=performance.now()}else if(n<m.n)m.n=n;
    memory.set(kind,m);
    state(e,m.at&&performance.now()-m.at<60000?'bad':null);
    set(e.firstChild,count(n));set(e.lastChild,kind);
  });
};

const depths=new Series();
const showOutbox=(d)=>{
  const o=obj(d.outbox);
  depths.push(num(o.depth));
  set($('#depth'),count(o.depth));
  set($('#depth').nextElementSibling,(o.depth===1?'entry waits':'entries wait')+(o.depth>0&&num(o.oldest_age_s)>=0.5?', the oldest for '+span(o.oldest_age_s*1000):''));
  plot($('#depth-plot'),depths);
  const lost=num(o.dropped),aside=num(o.set_aside),stale=num(o.expired),damaged=num(o.damaged);
  chip('outbox',o.problem?'bad':lost||aside?'warn':'ok',o.problem?'disk trouble':lost?count(lost)+' lost':'nothing lost');
  facts('outbox',[
    ['Problem',o.problem,'bad',ago(o.problem_since)],
    ['Taken',count(o.appended)],['Acknowledged',count(o.acked)],['Sent again',num(o.resent)?count(o.resent):null],
    ['Size',size(o.bytes)+(num(o.max_bytes)?' of '+size(o.max_bytes):''),null,num(o.segments)?plural(o.segments,'file'):''],
    ['Dropped',lost?count(lost):'none',lost?'warn':null],
    ['Let go as too old',stale?count(stale):null],
    ['Set aside',aside?count(aside):null,'warn'],
    ['Damaged on disk',damaged?plural(damaged,'stretch','stretches')+', '+size(o.damaged_bytes):null,'warn'],
    ['Written to flash',size(o.written_bytes),null,num(o.fsyncs)?plural(o.fsyncs,'fsync'):''],
  ]);
};

const showIdentity=(d)=>{
  const id=obj(d.identity),from=time(id.not_before),to=time(id.not_after),t=now();
  const part=(x)=>Math.max(0,Math.min(100,(x-from)/(to-from)*100))+'%';
  const expired=t>to,how=id.alarm?(expired||!/expires/.test(id.alarm)?'bad':'warn'):id.weak?'warn':'ok';
  chip('identity',isNaN(to)?'wait':how,isNaN(to)?'none':expired?'expired':id.alarm?'look here':id.weak?'weak key':'valid');
  const life=$('#life');
  state(life,how==='warn'&&!id.alarm?'ok':how);
  if(!isNaN(to)){
    life.style.setProperty('--gone',part(t));
    const due=time(id.renewal_due),mark=$('.due',life);
    mark.hidden=isNaN(due);
    if(!isNaN(due))life.style.setProperty('--due',part(due));
    set($('#life-from'),day(id.not_before));set($('#life-to'),day(id.not_after));
    set($('#life-left'),expired?'expired '+span(t-to)+' ago':span(to-t)+' left');
    attr(life,'aria-label','The certificate is valid from '+day(id.not_before)+' to '+day(id.not_after)+', '+$('#life-left').$text);
  }
  const tpm=id.tpm&&obj(id.tpm),a=obj(id.last_attempt),f=obj(id.factory);
  facts('identity',[
    ['Device',id.device||d.device],
    ['Alarm',id.alarm,'bad'],['Problem',id.problem,'bad'],
    ['Key',id.weak?'a file that can be copied':tpm?'in the TPM':id.key,id.weak?'warn':null,id.key],
    ['TPM',tpm?str(tpm.vendor).split(/\s+/).join(' ')+' '+str(tpm.firmware):null,tpm&&tpm.in_lockout?'bad':null,tpm?'lockout counter '+num(tpm.lockout_counter)+(num(tpm.failed)?', '+plural(tpm.failed,'command')+' without answer':''):''],
    ['Renewal',id.renewal_due?(time(id.renewal_due)<t?'due':'in '+span(time(id.renewal_due)-t)):null,null,day(id.renewal_due)],
    ['New certificate',id.staged?'waits for the broker to take it':null],
    ['Last attempt',a.at?(a.error?'failed '+ago(a.at):'done '+ago(a.at)):null,a.error?'warn':null,a.error||a.way],
    ['Issuer',id.issuer],['Serial number',id.serial],['Fingerprint',short(id.fingerprint)],
    ['Factory certificate',f.not_after?'until '+day(f.not_after):null,null,f.issuer],
    ['Clock',id.clock_note,'warn'],
    ['Signatures',id.full_handshakes!=null?plural(id.full_handshakes,'full handshake'):null,null,num(id.resumed_handshakes)?count(id.resumed_handshakes)+' without the key':''],
  ]);
};

const showCommands=(d)=>{
  const c=obj(d.commands),a=obj(d.authorize),s=obj(d.session);
  const refused=listCounts(a.refused),mode={off:'not asked for',audit:'noted, not asked for',enforce:'required'}[a.mode];
  chip('commands',a.problem?'warn':s.subscribed?'ok':'wait',s.subscribed?'heard':'not heard now');
  facts('commands',[
    ['Executed',count(c.executed)],['Refused',count(c.refused),num(c.refused)?'warn':null],
    ['Dropped',num(s.commands_dropped)?count(s.commands_dropped):null,'warn','too many waited'],
    ['Authorisation',mode||a.mode,null,arr(a.issuers).length?plural(a.issuers.length,'issuer'):''],
    ['Authorised',a.mode&&a.mode!=='off'?count(a.accepted):null],
    ['Refused tokens',refused.length?refused.map(([k,n])=>count(n)+' '+k.replace('authorization-','')).join(', '):null,'warn'],
    ['Problem',a.problem,'bad'],
  ]);
};

const showTrust=(d)=>{
  const t=obj(d.trust),audit=obj(d.audit),r=obj(t.revocation),last=obj(r.last);
  const roots=(x)=>{x=obj(x);const list=arr(x.active);return x.source?({file:'from the configuration',confirmed:'confirmed from afar',system:'of the operating system'}[x.source]||x.source)+(list.length?': '+plural(list.length,'root'):''):null};
  const names=(x)=>arr(obj(x).active).map(a=>str(a&&(a.subject||a.name))).filter(Boolean).slice(0,3).join(', ');
  const staged=obj(obj(t.broker).staged);
  const how=last.refused?'bad':audit.problem||num(audit.lost)?'warn':'ok';
  chip('trust',how,how==='ok'?'sound':'look here');
  facts('trust',[
    ['Roots for brokers',roots(t.broker),null,names(t.broker)],
    ['Roots for the registrar',roots(t.registrar),null,names(t.registrar)],
    ['Staged roots',arr(staged.roots).length?plural(staged.roots.length,'root')+' since '+day(staged.since):null,'warn',staged.confirmable?'can be confirmed':'not seen in use yet'],
    ['Revocation',{off:'not looked at',soft:'looked at, unknown is accepted',hard:'proof is required'}[r.policy]||r.policy,null,last.result?last.result+(last.why?': '+last.why:'')+' '+ago(last.at):''],
    ['Audit log',audit.last!=null?'lines '+count(audit.first)+' to '+count(audit.last):null,null,num(audit.signed)?'signed up to '+count(audit.signed):''],
    ['Lost audit lines',num(audit.lost)?count(audit.lost):null,'bad'],
    ['Audit problem',audit.problem,'bad'],
  ]);
};

const showUpdate=(d)=>{
  const u=d.update&&obj(d.update),c=obj(d.clock),near=obj(d.local);
  const goal=obj(u&&u.target),judged=obj(goal.trial),meta=obj(u&&u.metadata),floor=obj(u&&u.floor),win=obj(u&&u.window);
  const failed=u&&(u.unusable||u.problem),busy=u&&u.state&&u.state!=='idle',not=arr(judged.missing);
  const lost=u&&!busy&&goal.version&&goal.version!==u.version;
  chip('update',failed||lost||meta.alarm?'warn':u?'ok':'wait',failed?'look here':busy?str(u.state):lost?'not kept':u?'ready':'no updates configured');
  facts('update',[
    ['Version',d.version],['Running for',d.started?span(now()-time(d.started)):null,null,'boot '+num(d.boot)],
    ['Clock',c.trusted==null?null:c.trusted?'synchronised':'not synchronised',c.trusted===false?'warn':null,c.now?str(c.now).slice(0,19).replace('T',' ')+' UTC':''],
    ['Updates',u?(busy?str(u.state)+(goal.version?' '+goal.version:''):'from '+str(u.repository)):'No updates are configured',null,u&&u.next_check&&!busy?'next look '+day(u.next_check):''],
    ['Progress',busy&&num(goal.segments_all)?Math.floor(100*num(goal.segments)/goal.segments_all)+' %':null,null,num(goal.bytes)?size(goal.bytes)+' of '+size(goal.bytes_all)+(goal.delta?', as a delta':''):''],
    ['On trial',not.length?'missing: '+not.join(', '):null,'warn',judged.deferred?'the network is the only reason':''],
    [lost?'Not kept':'Reason',u&&u.reason?(lost?goal.version+': ':'')+u.reason:null,lost?'warn':null,u&&u.advice],
    ['Window',win.window,null,win.open?'open':win.opens?'opens '+day(win.opens)+' '+clock(win.opens):''],
    ['Floor',u&&!u.unusable?'security version '+num(floor.value):null,floor.weak?'warn':null,floor.weak||'kept by the TPM'],
    ['Metadata',meta.alarm,'warn'],
    ['Configuration',short(obj(d.config).sha256),d.config&&d.config.trial?'warn':null,d.config&&d.config.trial?'on trial until '+clock(d.config.trial.deadline):obj(d.config).path],
    ['Listener',obj(near.listener).address,near.problem||obj(near.listener).problem?'bad':null,near.listener?plural(near.listener.guests,'guest'):''],
    ['Installed',u&&str(u.version),null,u&&u.slot?'slot '+u.slot:''],['Problem',failed||null,'warn',u&&u.hint],
  ]);
  set($('#foot'),'Ferrule '+str(d.version)+' on '+str(d.device));
};
