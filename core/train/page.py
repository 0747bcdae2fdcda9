"""The look of every app's report: one page without scripts or outside files."""

from __future__ import annotations

import html
from collections.abc import Sequence


def table(caption: str, rows: Sequence[tuple[str, str]]) -> str:
    """Names and values under a caption as HTML; nothing if there are none."""
    body = "".join(f"<tr><th>{html.escape(k)}</th><td>{html.escape(v)}</td></tr>" for k, v in rows)
    return f"<table><caption>{html.escape(caption)}</caption>{body}</table>" if rows else ""


CSS = """
:root { --ink: #1f2933; --soft: #52606d; --line: #e4e7eb; --accent: #1d5c7a; --paper: #f5f7fa; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", "Helvetica Neue", "DejaVu Sans", Arial, sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 40px 24px 80px; }
header { margin-bottom: 28px; }
.brand { color: var(--accent); font-weight: 600; letter-spacing: .04em; font-size: 13px; text-transform: uppercase; }
h1 { font-size: 36px; line-height: 1.15; margin: 6px 0 4px; }
header p, section > p { color: var(--soft); margin: 0 0 14px; }
h2 { font-size: 19px; margin: 0 0 2px; }
section { background: white; border: 1px solid var(--line); border-radius: 10px; padding: 22px 24px; margin-top: 20px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 14px; }
.card { background: white; border: 1px solid var(--line); border-radius: 10px; padding: 16px 18px; }
.card:first-child { background: var(--accent); border-color: var(--accent); color: white; }
.card:first-child .caption { color: #cfe3ee; }
.number { font-size: 27px; font-weight: 650; font-variant-numeric: tabular-nums; white-space: nowrap; }
.caption { color: var(--soft); font-size: 13px; }
img { max-width: 100%; height: auto; display: block; margin: 0 auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(340px, 1fr)); gap: 20px; align-items: start; }
main > .pair { margin-top: 20px; align-items: stretch; } main > .pair > section { margin-top: 0; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
caption { text-align: left; font-weight: 600; padding: 6px 0; color: var(--accent); }
th, td { text-align: left; padding: 5px 12px 5px 0; border-top: 1px solid var(--line); vertical-align: top; }
th { font-weight: 400; color: var(--soft); white-space: nowrap; } td { overflow-wrap: anywhere; }
pre { background: var(--paper); border: 1px solid var(--line); border-radius: 6px; padding: 10px 12px; margin: 0 0 12px;
  overflow-x: auto; font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
details { margin-top: 14px; } summary { cursor: pointer; color: var(--accent); }
@media print { body { background: white; } section, .card { break-inside: avoid; } }
"""
