"""The frame of every page: style, script and policy, all inside the one file."""

from __future__ import annotations

from html import escape

_STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--text:#17202b;--dim:#647081;--line:#e3e7ec;
--chosen:#0d9488;--eager:#94a3b8;--budget:#dc2626;--good:#15803d;--good-bg:#dcfce7;--bad:#b91c1c;--bad-bg:#fee2e2;
--k0:#475569;--k1:#64748b;--k2:#94a3b8;--k3:#7c3aed;--k4:#2563eb;--k5:#0d9488;--k6:#d97706;--k7:#65a30d;--k8:#db2777;--k9:#a8a29e}
@media (prefers-color-scheme:dark){:root{--bg:#0e131a;--card:#171e28;--text:#e6ebf2;--dim:#8d9aab;--line:#283241;
--chosen:#2dd4bf;--eager:#64748b;--budget:#f87171;--good:#86efac;--good-bg:#14351f;--bad:#fca5a5;--bad-bg:#3f1515;
--k0:#94a3b8;--k1:#64748b;--k2:#475569;--k3:#a78bfa;--k4:#60a5fa;--k5:#2dd4bf;--k6:#fbbf24;--k7:#a3e635;--k8:#f472b6;--k9:#78716c}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--text);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:32px 20px 60px}
h1{font-size:26px;line-height:1.2;margin:0 0 4px;display:flex;gap:14px;align-items:center;flex-wrap:wrap;
overflow-wrap:anywhere}
h2{font-size:17px;margin:0 0 12px}
h3{font-size:14px;margin:22px 0 8px;color:var(--dim);font-weight:600}
.dim{color:var(--dim)}
.badge{font-size:13px;font-weight:700;letter-spacing:.04em;padding:3px 11px;border-radius:99px}
.fits{color:var(--good);background:var(--good-bg)}.over{color:var(--bad);background:var(--bad-bg)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(138px,1fr));gap:12px;margin:22px 0}
.tile,.card{background:var(--card);border:1px solid var(--line);border-radius:12px}
.tile{padding:12px 16px}.tile span{display:block;color:var(--dim);font-size:12.5px}
.tile b{font-size:19px;font-weight:650;font-variant-numeric:tabular-nums;white-space:nowrap}
.tile small{display:block;white-space:normal;color:var(--dim);font-size:12.5px;font-weight:400}
.card{padding:20px 22px;margin:0 0 18px;overflow-x:auto}
.guide[hidden]{display:none}
.two{display:grid;align-items:start;grid-template-columns:1fr 1fr;gap:18px}
.two .card{margin:0 0 18px}
@media (max-width:820px){.two{grid-template-columns:1fr;gap:0}}
table{border-collapse:collapse;width:100%;font-size:13.5px}
th,td{text-align:left;padding:6px 10px;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--dim);font-weight:600;white-space:nowrap}tr:last-child td{border-bottom:0}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
td{overflow-wrap:anywhere}td.code{font:12.5px/1.6 ui-monospace,SFMono-Regular,Menlo,monospace}
tr.total td{font-weight:650}
table.sortable th{cursor:pointer;user-select:none}table.sortable th:hover{color:var(--text)}
th[aria-sort=ascending]::after{content:" \\2191"}th[aria-sort=descending]::after{content:" \\2193"}
.swatch{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:8px}
svg{display:block;width:100%;height:auto}svg text{font-family:inherit}
.bar{height:34px;border-radius:6px;margin-bottom:14px}.free{fill:var(--line)}
.grid{stroke:var(--line)}.axis{fill:var(--dim);font-size:12px}.strong{fill:var(--chosen);font-size:13px;font-weight:700}
.eager{fill:var(--eager);opacity:.2}.eager-line{fill:none;stroke:var(--eager);stroke-width:1.4}
.chosen{fill:var(--chosen);opacity:.3}.chosen-line{fill:none;stroke:var(--chosen);stroke-width:1.8}
.resident{fill:var(--k0);opacity:.28}
.budget{stroke:var(--budget);stroke-width:1.5;stroke-dasharray:6 4}
.budget-text{fill:var(--budget);font-size:12.5px;font-weight:600}
.boundary{stroke:var(--dim);stroke-dasharray:2 4}.guide{stroke:var(--text);opacity:.6}
.curve{fill:none;stroke:var(--chosen);stroke-width:2;opacity:.75}
.point{fill:var(--chosen);stroke:var(--card);stroke-width:1.5}
.mark{stroke:var(--text);stroke-width:2}
.legend{display:flex;gap:18px;flex-wrap:wrap;color:var(--dim);font-size:13px;margin-top:6px}
.tip{position:fixed;pointer-events:none;background:var(--text);color:var(--bg);padding:7px 11px;border-radius:8px;
font-size:12.5px;line-height:1.45;white-space:pre;z-index:9;box-shadow:0 4px 14px #0004}.tip[hidden]{display:none}
"""

_STYLE += "".join(f".kind-{i}{{fill:var(--k{i})}}.swatch-{i}{{background:var(--k{i})}}" for i in range(10))

_SCRIPT = """
const size=b=>{
 for(const u of ['B','KiB','MiB','GiB']){if(b<1024)return b.toFixed(u==='B'?0:1)+' '+u;b/=1024}
 return b.toFixed(1)+' TiB'};
const tip=document.createElement('div');tip.className='tip';tip.hidden=true;document.body.append(tip);
for(const svg of document.querySelectorAll('svg.timeline')){
 const d=JSON.parse(svg.dataset.series),guide=svg.querySelector('.guide');
 svg.addEventListener('pointermove',e=>{
  const box=svg.getBoundingClientRect(),x=(e.clientX-box.left)/box.width*1000;
  const i=Math.floor((x-d.left)/(d.right-d.left)*d.chosen.length);
  tip.hidden=!(i>=0&&i<d.chosen.length);guide.toggleAttribute('hidden',tip.hidden);if(tip.hidden)return;
  guide.setAttribute('x1',x);guide.setAttribute('x2',x);
  tip.textContent='chosen  '+size(d.chosen[i])+'\\neager   '+size(d.eager[i])+
   '\\nsaved   '+size(Math.max(0,d.eager[i]-d.chosen[i]));
  tip.style.left=Math.min(e.clientX+16,innerWidth-180)+'px';tip.style.top=(e.clientY+16)+'px'});
 svg.addEventListener('pointerleave',()=>{tip.hidden=true;guide.toggleAttribute('hidden',true)})}
for(const table of document.querySelectorAll('table.sortable'))table.querySelectorAll('th').forEach((th,column)=>{
 th.tabIndex=0;
 const sort=()=>{const down=th.getAttribute('aria-sort')!=='descending',body=table.tBodies[0];
  const key=row=>{
   const c=row.cells[column];return 'v' in c.dataset?+c.dataset.v:c.textContent};
  const rows=[...body.rows].sort((a,b)=>{
   const x=key(a),y=key(b);return typeof x==='number'?x-y:x.localeCompare(y,undefined,{numeric:true})});
  table.querySelectorAll('th').forEach(other=>other.removeAttribute('aria-sort'));
  th.setAttribute('aria-sort',down?'descending':'ascending');body.append(...(down?rows.reverse():rows))};
 th.addEventListener('click',sort);th.addEventListener('keydown',e=>{if(e.key==='Enter')sort()})});
"""

#: The page may load nothing at all; what is in it is all there is.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


def page(title: str, body: str) -> str:
    """A whole HTML document; `body` is markup, `title` is text."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><main>{body}</main><script>{_SCRIPT}</script></body></html>\n"
    )


def card(title: str, *parts: str) -> str:
    """A framed section; `parts` are markup."""
    return f'<section class="card"><h2>{escape(title)}</h2>{"".join(parts)}</section>\n'


def tiles(rows: list[tuple[str, str]]) -> str:
    """The figures of the head; what stands in brackets is set smaller."""
    cells = []
    for label, text in rows:
        number, _, note = text.partition(" (")
        small = f" <small>{escape(note.rstrip(')'))}</small>" if note else ""
        cells.append(f'<div class="tile"><span>{escape(label)}</span><b>{escape(number)}{small}</b></div>')
    return f'<div class="tiles">{"".join(cells)}</div>\n'


def cell(text: str, value: float | None = None, kind: str = "") -> str:
    """One cell; with a `value` it is a number, aligned right and sorted by that value."""
    if value is not None:
        return f'<td class="n" data-v="{value!r}">{escape(text)}</td>'
    return f'<td class="{kind}">{escape(text)}</td>' if kind else f"<td>{escape(text)}</td>"


def table(columns: list[str], rows: list[str], numbers: tuple[str, ...] = (), sortable: bool = False) -> str:
    """A table of ready rows (`<tr>…</tr>`); columns named in `numbers` are aligned right."""
    head = "".join(f'<th class="n">{escape(c)}</th>' if c in numbers else f"<th>{escape(c)}</th>" for c in columns)
    kind = ' class="sortable"' if sortable else ""
    return f"<table{kind}><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
