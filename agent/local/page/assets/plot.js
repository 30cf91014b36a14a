// A series is the last five minutes of one point in buckets of two seconds, each with the lowest,
// the highest and the last value: as many readings as may come, it stays as small as it is.
const BUCKET=2000,BUCKETS=150;
class Series{
  constructor(){
    this.lo=new Float64Array(BUCKETS).fill(NaN);this.hi=new Float64Array(BUCKETS).fill(NaN);this.end=new Float64Array(BUCKETS).fill(NaN);
    this.bad=new Uint8Array(BUCKETS);this.head=Math.floor(performance.now()/BUCKET);
    this.first=this.head;
  }
  // shown is how many buckets a plot shows: as many as there are, at least half a minute.
  shown(){return Math.max(15,Math.min(BUCKETS,this.head-this.first+1))}
  // turn brings the ring to the present and returns the present's index.
  turn(){
    const b=Math.floor(performance.now()/BUCKET);
    for(let n=Math.min(b-this.head,BUCKETS),k=b;n>0;n--,k--){const i=k%BUCKETS;this.lo[i]=this.hi[i]=this.end[i]=NaN;this.bad[i]=0}
    if(b>this.head)this.head=b;
    return this.head%BUCKETS;
  }
  push(v){
    const i=this.turn();
    if(!(this.lo[i]<=v))this.lo[i]=v;
    if(!(this.hi[i]>=v))this.hi[i]=v;
    this.end[i]=v;
  }
  fail(){this.bad[this.turn()]=1}
  // summary returns lowest, highest and mean; null where there is nothing.
  summary(){
    this.turn();
    let lo=Infinity,hi=-Infinity,sum=0,n=0;
    for(let i=0;i<BUCKETS;i++)if(this.lo[i]===this.lo[i]){lo=Math.min(lo,this.lo[i]);hi=Math.max(hi,this.hi[i]);sum+=this.end[i];n++}
    return n?{lo,hi,mean:sum/n,n}:null;
  }
}

// Colours are read from the style once for each theme.
let ink=null;
const colours=()=>{
  if(!ink){const s=getComputedStyle(root);ink={};for(const c of['plot','plot-fill','bad','mute','line','ink'])ink[c]=s.getPropertyValue('--'+c).trim()}
  return ink;
};
const forgetColours=()=>{ink=null};

// fit gives a canvas the pixels that it covers and returns its context and size in CSS pixels.
const fit=(canvas)=>{
  const w=canvas.clientWidth,h=canvas.clientHeight,d=Math.min(window.devicePixelRatio||1,2);
  if(!w||!h)return null;
  const W=Math.round(w*d),H=Math.round(h*d);
  if(canvas.width!==W||canvas.height!==H){canvas.width=W;canvas.height=H}
  const c=canvas.getContext('2d');
  c.setTransform(d,0,0,d,0,0);c.clearRect(0,0,w,h);
  return{c,w,h};
};

// plot draws a series: the band between lowest and highest, the line of the last values, a tick
// where a reading failed. Time runs from left to right, also in scripts that do not.
const plot=(canvas,series,big)=>{
  const f=fit(canvas);
  if(!f)return;
  const{c,w,h}=f,col=colours(),sum=series.summary();
  const shown=series.shown();
  const top=big?8:4,bottom=h-(big?20:4),left=2,right=w-(big?4:5);
  if(big)frame(c,col,span(shown*BUCKET)+' ago',w,top,bottom);
  if(!sum)return drawBad(c,col,series,left,right,bottom,big);
  let lo=sum.lo,hi=sum.hi;
  // What hardly moves is drawn as what hardly moves.
  const least=Math.max(Math.abs(hi),Math.abs(lo))*0.004||1;
  if(hi-lo<least){const m=(hi+lo)/2;lo=m-least/2;hi=m+least/2}
  const x=(k)=>left+(right-left)*k/(shown-1),y=(v)=>bottom-(bottom-top)*(v-lo)/(hi-lo);
  const pts=[];
  for(let k=0;k<shown;k++){const i=(series.head-shown+1+k+BUCKETS)%BUCKETS;if(series.end[i]===series.end[i])pts.push([x(k),y(series.end[i]),y(series.lo[i]),y(series.hi[i])])}
  c.lineJoin=c.lineCap='round';
  c.beginPath();
  pts.forEach((p,i)=>i?c.lineTo(p[0],p[3]):c.moveTo(p[0],p[3]));
  for(let i=pts.length-1;i>=0;i--)c.lineTo(pts[i][0],pts[i][2]);
  c.closePath();c.fillStyle=col['plot-fill'];c.fill();
  c.beginPath();
  pts.forEach((p,i)=>i?c.lineTo(p[0],p[1]):c.moveTo(p[0],p[1]));
  c.strokeStyle=col.plot;c.lineWidth=big?2:1.5;c.stroke();
  const last=pts[pts.length-1];
  if(last[0]<right-1){c.beginPath();c.moveTo(last[0],last[1]);c.lineTo(right,last[1]);c.globalAlpha=0.35;c.stroke();c.globalAlpha=1}
  c.beginPath();c.arc(last[0],last[1],big?3.5:2.2,0,7);c.fillStyle=col.plot;c.fill();
  drawBad(c,col,series,left,right,bottom,big);
};
const drawBad=(c,col,series,left,right,bottom,big)=>{
  c.fillStyle=col.bad;
  const shown=series.shown();
  for(let k=0;k<shown;k++)if(series.bad[(series.head-shown+1+k+BUCKETS)%BUCKETS])c.fillRect(left+(right-left)*k/(shown-1)-1,bottom-(big?6:3),2,big?8:5);
};
const frame=(c,col,from,w,top,bottom)=>{
  c.strokeStyle=col.line;c.lineWidth=1;
  for(let i=0;i<=2;i++){const y=Math.round(top+(bottom-top)*i/2)+0.5;c.beginPath();c.moveTo(0,y);c.lineTo(w,y);c.stroke()}
  c.fillStyle=col.mute;c.font='11px system-ui,sans-serif';
  c.textBaseline='alphabetic';
  c.textAlign='left';c.fillText(from,2,bottom+15);
  c.textAlign='right';c.fillText('now',w-2,bottom+15);
};
