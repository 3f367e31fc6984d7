"""How the page looks: light, dark, on a phone, on paper."""

from flatlm.generative.reporting.svg import DARK_SERIES, SERIES


def _variables(colors: dict[str, str], series: tuple[str, ...]) -> str:
    return "".join(f"--{name}:{color};" for name, color in colors.items()) + "".join(f"--series-{i}:{c};" for i, c in enumerate(series))


_LIGHT = _variables(
    {"ink": "#1b1f24", "muted": "#5b6470", "paper": "#ffffff", "panel": "#f5f7f9", "line": "#d5dbe1", "link": "#0b5cad"}
    | {"good": "#116329", "bad": "#a40e26"},
    SERIES,
)
_DARK = _variables(
    {"ink": "#e6eaf0", "muted": "#9aa5b1", "paper": "#14181d", "panel": "#1d232a", "line": "#343d47", "link": "#7cc0ff"}
    | {"good": "#6fd28a", "bad": "#ff9492"},
    DARK_SERIES,
)
_BODY = """
*{box-sizing:border-box}
html{color-scheme:light dark;-webkit-text-size-adjust:100%}
body{margin:0 auto;max-width:80rem;padding:1.5rem 1.25rem 4rem;background:var(--paper);color:var(--ink);
font:1rem/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif;overflow-wrap:break-word}
h1{margin:0;font-size:1.9rem;line-height:1.2}
h2{margin:2.6rem 0 .8rem;padding-bottom:.3rem;border-bottom:1px solid var(--line);font-size:1.35rem}
h3{margin:0;font-size:1.05rem}
p{max-width:46rem;margin:.6rem 0}
a{color:var(--link)}
a:focus-visible,summary:focus-visible,.scroll:focus-visible{outline:2px solid var(--link);outline-offset:2px}
.subtitle{color:var(--muted)}
nav ul{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;margin:1rem 0 0;padding:0;list-style:none}
.scroll{overflow-x:auto;margin:.9rem 0 1.3rem}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
caption{position:sticky;left:0;padding:.2rem 0 .4rem;color:var(--muted);text-align:left;font-size:.9rem}
th,td{padding:.32rem .55rem;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
thead th,thead td{background:var(--panel);vertical-align:bottom;font-weight:600}
tbody th{font-weight:500}
tbody tr:hover{background:var(--panel)}
.number{text-align:right;white-space:nowrap}
thead .wrapped{white-space:normal;min-width:4.9rem}
.short{white-space:nowrap}
.code,.code a{font-family:ui-monospace,SFMono-Regular,Consolas,"DejaVu Sans Mono",monospace;font-size:.85rem;overflow-wrap:anywhere}
th.code{min-width:17rem}td.code{min-width:9rem}
.missing{color:var(--muted);font-style:italic}
td.missing{white-space:normal;min-width:4.6rem}
.good{color:var(--good);font-weight:600}
.bad{color:var(--bad);font-weight:600}
figure{margin:1.2rem 0 1.8rem;max-width:52rem}
figure svg{display:block;width:100%;height:auto}
figcaption{margin-top:.3rem;color:var(--muted);font-size:.9rem}
.narrow{display:none}
details{margin:.6rem 0;padding:.2rem .9rem;border:1px solid var(--line);border-radius:.5rem}
summary{padding:.45rem 0;cursor:pointer}
summary h3{display:inline}
@media (max-width:40rem){body{padding:1rem .8rem 3rem}.wide{display:none}.narrow{display:block}
th,td{padding:.3rem .45rem}th.code{min-width:10rem}}
@media print{body{max-width:none;padding:0;font-size:10pt}nav{display:none}table{font-size:7.5pt}.code,.code a{font-size:7pt}
th,td{padding:2pt 4pt}td.code,th.code{min-width:0}.scroll{overflow:visible}.wide{display:block}.narrow{display:none}
h2,h3,caption{break-after:avoid}figure,tr{break-inside:avoid}details{border:0;padding:0}
details::details-content{content-visibility:visible;display:block;height:auto}}
"""
STYLE_SHEET = (
    f":root{{{_LIGHT}}}@media screen and (prefers-color-scheme:dark){{:root{{{_DARK}}}}}@media print{{html{{color-scheme:light}}}}" + _BODY
)
