// Before the first paint, so that a chosen theme does not flash.
try{const t=localStorage.getItem('ferrule.theme');if(t==='dark'||t==='light')document.documentElement.dataset.theme=t}catch{}
