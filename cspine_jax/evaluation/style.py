"""The page around the report: colours for light, dark and print, and a layout that folds on a narrow screen."""

STYLE = """
:root{--ink:#17202a;--soft:#5b6774;--line:#dfe4ea;--page:#f5f7f9;--card:#fff;--accent:#1f5fae;--good:#0b7a53;
--bad:#b3312c;
--s0:#1f5fae;--s1:#c2570c;--s2:#0b7a53;--s3:#7b3fa0;--s4:#8a6d00;--s5:#c02672;--warn:#fff3d6;--warnink:#6b4700;
--heat:31,95,174}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaef;--soft:#9aa7b4;--line:#303a45;--page:#12171d;--card:#1a2129;
--accent:#7db4f5;--good:#4fc99a;--bad:#ff8a80;--s0:#7db4f5;--s1:#f5a35c;--s2:#4fc99a;--s3:#c79bea;--s4:#e0c35a;
--s5:#f08cba;
--warn:#3a2f12;--warnink:#f4d58a;--heat:125,180,245}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,Arial,
sans-serif}
main{max-width:1120px;margin:0 auto;padding:24px 16px 48px}
h1{font-size:1.6rem;line-height:1.25;margin:.2rem 0}
h2{font-size:1.12rem;margin:0 0 .5rem}
h3{font-size:.92rem;margin:0 0 .3rem}
p{margin:.35rem 0}
.soft,figcaption{color:var(--soft);font-size:.86rem}
.tag{display:inline-block;padding:.1rem .6rem;border-radius:1rem;font-size:.8rem;font-weight:600;
background:var(--warn);color:var(--warnink);margin-right:.4rem}
section{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:18px;margin:16px 0}
.grid{display:grid;gap:16px;grid-template-columns:repeat(auto-fit,minmax(min(290px,100%),1fr))}
.facts{grid-template-columns:repeat(auto-fit,minmax(min(330px,100%),1fr))}
.four{grid-template-columns:repeat(auto-fit,minmax(min(225px,100%),1fr))}
.cards{display:grid;gap:12px;grid-template-columns:repeat(auto-fit,minmax(min(150px,100%),1fr));margin:16px 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 16px}
.card b{display:block;font-size:1.75rem;line-height:1.2;font-variant-numeric:tabular-nums}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.88rem;width:100%}
th,td{padding:.24rem .6rem;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}
thead th{color:var(--soft);font-weight:600;vertical-align:bottom}
.v{font-weight:650}small{color:var(--soft);font-size:.78rem}i{color:var(--accent);font-size:.86rem}
table.wide td,table.wide th{vertical-align:top}table.wide td:first-child{white-space:normal;min-width:10rem}
table.small{width:auto}
.facts td,.facts th{padding:.2rem .3rem;font-size:.84rem}
table.heat{width:auto}
table.heat td,table.heat th{text-align:center;border:1px solid var(--line);min-width:2.6rem;padding:.2rem .35rem}
svg{display:block;width:100%;height:auto;font:11px system-ui,sans-serif}
svg text{fill:var(--soft)}svg .name{fill:var(--ink);font-size:11.5px}
svg .grid{stroke:var(--line);fill:none;stroke-width:1}svg .axis{stroke:var(--soft);fill:none}
svg .line{fill:none;stroke-width:1.9;stroke-linejoin:round;stroke:var(--c)}
svg .dot{fill:var(--c);fill-opacity:.8;stroke:var(--card)}
svg .ref{stroke:var(--soft);stroke-dasharray:4 4;stroke-width:1}
svg .thin{stroke-width:1;opacity:.7}
.s0{--c:var(--s0)}.s1{--c:var(--s1)}.s2{--c:var(--s2)}.s3{--c:var(--s3)}.s4{--c:var(--s4)}.s5{--c:var(--s5)}
figure{margin:0}
.key li{padding-left:1.5em;text-indent:-1.5em}
.key{list-style:none;margin:.3rem 0 0;padding:0 0 0 40px;font-size:.82rem}
.key li::before{content:"";display:inline-block;width:1.1em;height:3px;border-radius:2px;background:var(--c);
margin-right:.45em;vertical-align:middle}
.pictures{margin-bottom:1rem;display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(min(156px,45%),1fr))}
.pictures img{width:100%;display:block;border-radius:6px;background:#000;border:3px solid var(--bad)}
.pictures .right img{border-color:var(--good)}
.pictures figcaption{font-size:.79rem;line-height:1.4;overflow-wrap:anywhere;padding-top:.3rem}
.pictures b{color:var(--ink)}
dl{display:grid;grid-template-columns:minmax(7rem,max-content) 1fr;gap:.15rem 1rem;margin:.3rem 0;font-size:.88rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
ul.plain{margin:.3rem 0;padding-left:1.1rem}
@media print{body{background:#fff}section,.card{break-inside:avoid}}
"""
