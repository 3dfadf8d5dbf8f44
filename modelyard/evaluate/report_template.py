"""The page of a verdict. Everything it shows is in it: it opens without a network, and prints."""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ outcome }}: {{ verdict.subject }}</title>
<style>
:root { --ink: #1d2530; --soft: #667085; --line: #e4e7ec; --good: #157347; --bad: #b42318; --blue: #2563eb; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); margin: 0 auto; max-width: 62rem; padding: 2rem 1.25rem; }
h1 { font-size: 1.6rem; margin: 0 0 .25rem; } h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; }
p { margin: .4rem 0; } .soft { color: var(--soft); } code { font-size: .85em; overflow-wrap: anywhere; }
.good { color: var(--good); } .bad { color: var(--bad); } .mark { font-weight: 600; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .6rem; border-bottom: 1px solid var(--line); vertical-align: middle; }
th { font-weight: 600; color: var(--soft); font-size: .85rem; } td.number, th.number { text-align: right; }
.confusion { width: auto; } .confusion td { text-align: center; min-width: 2.6rem; border: 1px solid white; }
.confusion th { text-align: center; border: 0; } svg, img { display: block; max-width: 100%; }
.intervals td { white-space: nowrap; } .intervals td:first-child { white-space: normal; overflow-wrap: anywhere; }
.scale { display: flex; justify-content: space-between; width: 15rem; } .intervals svg { width: 15rem; } .wide { overflow-x: auto; } .nowrap { white-space: nowrap; }
.short { background: #f8f9fb; border-left: 3px solid var(--line); padding: .6rem .9rem; margin: .9rem 0; } .short ul { margin: 0; padding-left: 1.1rem; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 0 2rem; }
@media print { body { max-width: none; padding: 0; font-size: 12px; } .confusion td { min-width: 0; padding: .2rem .3rem; } h2 { break-after: avoid; } tr, svg, img { break-inside: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
</style>
</head>
<body>
<h1 class="{{ 'good' if is_released else 'bad' }}">{{ outcome }}</h1>
<p><code>{{ verdict.subject }}</code>, form <b>{{ verdict.form }}</b>, judged by {{ verdict.metric }}
on {{ "{:,}".format(metrics.candidate.rows) }} test rows.</p>
{% if verdict.override and not verdict.passed %}<p class="mark">Let through by {{ verdict.override.by }}: {{ verdict.override.reason }}</p>{% endif %}
{% for reason in verdict.reasons %}<p class="bad">{{ reason }}</p>{% endfor %}
{% for note in verdict.notes %}<p class="soft">Note: {{ note }}{{ "" if note[-1:] == "." else "." }}</p>{% endfor %}
{% if in_short %}<div class="short"><ul>{% for said in in_short %}<li>{{ said }}</li>{% endfor %}</ul></div>{% endif %}

<h2>Checks</h2>
<table>
<tr><th>check</th><th class="number">value</th><th class="number">must be</th><th>result</th></tr>
{% for check in verdict.checks %}<tr><td>{{ check.name }}{% if "allowed drop" in check.sentence %}<br>
<span class="soft">{{ check.sentence }}</span>{% endif %}</td><td class="number">{{ check.value | short }}</td>
<td class="number nowrap">{{ bound(check) }}</td>
<td class="mark {{ 'good' if check.passed else 'bad' }}">{{ 'passed' if check.passed else 'refused' }}</td></tr>
{% endfor %}</table>

{% if verdict.scores %}
<h2>{{ verdict.metric }}, with {{ "%g" % (100 * (verdict.scores.values() | first).confidence) }} % intervals</h2>
{{ intervals(score_rows) }}
{% if verdict.comparison %}{% set c = verdict.comparison %}
<p>Against the champion, row by row: {{ "%+.4f" % c.difference.value }}
({{ "%+.4f" % c.difference.low }} to {{ "%+.4f" % c.difference.high }}). The candidate is better with probability
<b>{{ "%.3f" % c.probability_better }}</b>. It {{ "alone is right" if "classes" in metrics.candidate or "entities" in metrics.candidate else "is closer" }} on
{{ c.only_candidate_right }} rows, the champion on {{ c.only_champion_right }} (McNemar p = {{ "%.3g" % c.p_value }}).</p>{% endif %}
{% endif %}

<h2>Scores</h2>
<table>
<tr><th>model</th>{% for name in score_names %}<th class="number">{{ name }}</th>{% endfor %}<th class="number">bytes</th></tr>
{% for role, found in metrics.items() %}<tr><td>{{ role }}</td>
{% for name in score_names %}<td class="number">{{ found[name] | short if name in found else "" }}{% if name in found.intervals %}
<br><span class="soft">{{ found.intervals[name].low | short }} to {{ found.intervals[name].high | short }}</span>{% endif %}</td>{% endfor %}
<td class="number">{{ "{:,}".format(verdict.sizes[role]) if role in verdict.sizes else "" }}</td></tr>
{% endfor %}</table>
<p class="soft">{% for name, meaning in meanings %}<b>{{ name }}</b>: {{ meaning }}{{ ". " if loop.last else "; " }}{% endfor %}
Below a score stands its interval.</p>

{% if slice_rows.rows %}
<h2>Slices, worst first</h2>
{{ intervals(slice_rows) }}
{% endif %}
{% if small_slice_rows.rows %}
<h2>Slices of too few rows to judge</h2>
{{ intervals(small_slice_rows) }}
<p class="soft">They are shown with their intervals; no bound looks at them.</p>
{% endif %}

{% if verdict.disturbed %}
<h2>When disturbed</h2>
<table>
<tr><th></th>{% for role in metrics %}<th class="number">{{ role }}</th>{% endfor %}</tr>
{% for name, scores in verdict.disturbed.items() %}<tr><td>{{ name }}</td>
{% for role in metrics %}<td class="number">{{ scores[role] | short if role in scores else "" }}</td>{% endfor %}</tr>{% endfor %}
</table>
<p class="soft">{% if "typos" in verdict.disturbed %}A slip of the fingers in a tenth of the words; a tenth of the words
missing; capitals throughout.{% else %}Noise of a tenth of each column's deviation; a tenth of the values missing; a tenth of the columns
exchanged among the rows.{% endif %} No gradients are used: the form is judged as it will be served.</p>
{% endif %}

{% if verdict.attacked %}
<h2>Under attack</h2>
<table>
<tr><th></th>{% for role in metrics %}<th class="number">{{ role }}</th>{% endfor %}</tr>
{% for name, scores in verdict.attacked.items() %}<tr><td>{{ name }}</td>
{% for role in metrics %}<td class="number">{{ scores[role] | short if role in scores else "" }}</td>{% endfor %}</tr>{% endfor %}
</table>
<p class="soft">An opponent moves every number by at most {{ "%g" % (100 * verdict.attack_strength) }} % of its deviation:
fgsm in one step along the sign of the gradient, pgd in several, random signs by tries alone. Gradients are the trained
network's; the rows are answered by the form that will be served.</p>
{% endif %}

{% if explained and explained.texts is defined %}
<h2>What the answers rest on</h2>
{% for one in explained.texts %}<p><b>{{ one.answer }}</b>{% if one.truth != one.answer %}
<span class="bad">(truth: {{ one.truth }})</span>{% endif %}: {% for part in one.parts %}<span style="background: rgba({{
"180, 35, 24" if part.weight > 0 else "37, 99, 235" }}, {{ "%.2f" % (0.6 * part.share) }})">{{ part.text }}</span>{% endfor %}</p>
{% endfor %}
<p class="soft">What spoke for (red) and against (blue) the answer, on {{ explained.texts | length }} test rows: {% if explained.completeness %}integrated gradients
of the trained network from a text of padding alone; they miss what they should add up to by
{{ "%.2g" % (100 * explained.completeness.mean) }} % on average and {{ "%.2g" % (100 * explained.completeness.largest) }} % at most.
{% else %}what the answer loses when a token gives way to padding, one at a time; there is no trained network at hand, so it is
the form that will be served which says so.{% endif %}</p>
{% elif explained %}
<h2>What the answers rest on</h2>
{% if picture %}<img src="data:image/png;base64,{{ picture }}" alt="columns that matter, by class, and behind the worst errors">{% endif %}
<p class="soft">On {{ "{:,}".format(explained.rows) }} test rows. Loss of score: each column exchanged among the rows, answered by
the form that will be served, in units of {{ verdict.metric }}. {% if explained.attribution and not explained.attribution.completeness %}Attributions, in units of
raw outputs: what an answer of the form that will be served loses when a column gives way to its mean, or to its most frequent
value, one at a time; there is no trained network at hand, so there are no gradients.{% elif explained.attribution %}Attributions, in units of the network's raw
outputs: integrated gradients of the trained network from the
mean row; they miss what they should add up to by {{ "%.2g" % (100 * explained.attribution.completeness.mean) }} % on average and
{{ "%.2g" % (100 * explained.attribution.completeness.largest) }} % at most.{% else %}There is no trained network at hand, so no
attributions.{% endif %}</p>
{% endif %}

{{ entities }}
{% if scatter %}
<h2>Answers against the truth</h2>
<svg viewBox="-30 0 340 300" width="340" height="300" role="img" aria-label="answers against the truth">
<rect x="60" y="20" width="230" height="230" fill="none" stroke="#e4e7ec"/>
<line x1="60" y1="250" x2="290" y2="20" stroke="#98a2b3" stroke-dasharray="4 4"/>
{% for point in scatter.points %}<circle cx="{{ point.x }}" cy="{{ point.y }}" r="2.2" fill="#2563eb" fill-opacity="0.5"/>{% endfor %}
<text x="60" y="266" text-anchor="middle" font-size="11" fill="#667085">{{ "{:,.6g}".format(scatter.low) }}</text>
<text x="290" y="266" text-anchor="end" font-size="11" fill="#667085">{{ "{:,.6g}".format(scatter.high) }}</text>
<text x="54" y="254" text-anchor="end" font-size="11" fill="#667085">{{ "{:,.6g}".format(scatter.low) }}</text>
<text x="54" y="28" text-anchor="end" font-size="11" fill="#667085">{{ "{:,.6g}".format(scatter.high) }}</text>
<text x="175" y="285" text-anchor="middle" font-size="12" fill="#667085">truth</text>
<text x="14" y="135" text-anchor="middle" font-size="12" fill="#667085" transform="rotate(-90 14 135)">answer</text>
</svg>
<p class="soft">{{ scatter.points | length }} test rows, in the target's own units. Half of these answers are off by no more than
{{ "{:,.6g}".format(error_quantiles[0]) }}, nine in ten by no more than {{ "{:,.6g}".format(error_quantiles[1]) }}.</p>
{% endif %}
{% if "confusion" in metrics.candidate %}
<div class="columns"><div>
<h2>Confusion (rows: truth)</h2>
<div class="wide">
{% if metrics.candidate.classes | length <= 25 %}
<table class="confusion"><tr><th></th>{% for label in metrics.candidate.classes %}<th>{{ label }}</th>{% endfor %}</tr>
{% for row in confusion_rows %}<tr><th>{{ row.label }}</th>
{% for cell in row.cells %}<td style="background: rgba(37, 99, 235, {{ cell.share }}); color: {{ 'white' if cell.share > 0.5 else 'inherit' }}">
{{ cell.count or "" }}</td>{% endfor %}</tr>{% endfor %}</table>
{% else %}<p class="soft">{{ metrics.candidate.classes | length }} classes: the numbers are in metrics.json.</p>{% endif %}
</div>
<p class="soft">Darker: a larger share of the true class.</p>
</div><div>
<h2>Calibration</h2>
<svg viewBox="0 0 300 300" width="300" height="300" role="img" aria-label="confidence against accuracy">
<rect x="40" y="10" width="240" height="240" fill="none" stroke="#e4e7ec"/>
<line x1="40" y1="250" x2="280" y2="10" stroke="#98a2b3" stroke-dasharray="4 4"/>
<polyline fill="none" stroke="#2563eb" stroke-width="2" points="{{ calibration_line }}"/>
{% for point in calibration_points %}<circle cx="{{ point.x }}" cy="{{ point.y }}" r="{{ point.radius }}" fill="#2563eb"/>{% endfor %}
<text x="40" y="265" text-anchor="middle" font-size="11" fill="#667085">0</text>
<text x="160" y="265" text-anchor="middle" font-size="11" fill="#667085">0.5</text>
<text x="280" y="265" text-anchor="middle" font-size="11" fill="#667085">1</text>
<text x="34" y="254" text-anchor="end" font-size="11" fill="#667085">0</text>
<text x="34" y="134" text-anchor="end" font-size="11" fill="#667085">0.5</text>
<text x="34" y="14" text-anchor="end" font-size="11" fill="#667085">1</text>
<text x="160" y="285" text-anchor="middle" font-size="12" fill="#667085">confidence</text>
<text x="10" y="130" text-anchor="middle" font-size="12" fill="#667085" transform="rotate(-90 10 130)">accuracy</text>
</svg>
<p class="soft">Rows by how sure the model is: below the line it is surer than right. Larger points stand for more rows.</p>
</div></div>
{% if "per_class" in metrics.candidate %}
<h2>Per class</h2>
<table><tr><th>class</th><th class="number">precision</th><th class="number">recall</th><th class="number">F1</th>
<th class="number">rows</th></tr>
{% for row in class_rows %}<tr><td>{{ row.label }}</td><td class="number">{{ row.precision | short }}</td>
<td class="number">{{ row.recall | short }}</td><td class="number">{{ row.f1 | short }}</td>
<td class="number">{{ row.rows }}</td></tr>{% endfor %}</table>{% endif %}
{% endif %}

<h2>What was judged</h2>
<table>{% for role, digest in verdict.inputs.items() %}<tr><td>{{ role }}</td><td><code>{{ digest }}</code></td></tr>{% endfor %}</table>
</body>
</html>
"""

INTERVALS = """<table class="intervals">
<tr><th></th><th class="number">score</th><th class="number">interval</th>
<th><div class="scale"><span>{{ "%.3g" % low }}</span><span>{{ "%.3g" % high }}</span></div></th>{% if has_champion %}<th class="number">champion</th>{% endif %}
{% if has_remark %}<th></th>{% endif %}</tr>
{% for row in rows %}<tr><td>{{ row.name }}</td><td class="number">{{ row.value | short }}</td>
<td class="number soft">{{ row.low | short }} to {{ row.high | short }}</td>
<td><svg viewBox="0 0 240 18" height="18" role="img" aria-label="{{ row.name }}">
<line x1="0" y1="9" x2="240" y2="9" stroke="#e4e7ec"/>
<line x1="{{ row.x_low }}" y1="9" x2="{{ row.x_high }}" y2="9" stroke="#2563eb" stroke-width="4" stroke-linecap="round"/>
<circle cx="{{ row.x }}" cy="9" r="5" fill="#1d2530"/>
{% if row.x_champion is not none %}<line x1="{{ row.x_champion }}" y1="1" x2="{{ row.x_champion }}" y2="17" stroke="#e36209" stroke-width="3"/>{% endif %}
</svg></td>
{% if has_champion %}<td class="number">{{ row.champion | short }}</td>{% endif %}
{% if has_remark %}<td class="soft number">{{ row.remark }}</td>{% endif %}</tr>
{% endfor %}</table>
<p class="soft">Dot: the score; blue: its interval{% if has_champion %}; orange: the champion{% endif %}.</p>"""
