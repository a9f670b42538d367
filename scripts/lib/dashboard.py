"""Asks Prometheus for every expression of the Grafana dashboard and every alert, and fails if one has no data.

Usage: dashboard.py URL. Run it after a tour that has made happen what the panels show. An alert's expression is empty
while all is well, so its metrics are asked for instead, and whether Prometheus could evaluate it.
"""

import json
import re
import sys
import urllib.parse
import urllib.request

# Panels that are about settings which `dev` does not use.
UNUSED = {"Audit log": "audit_log", "Leader manifest": "manifest_publish"}
UNUSED_METRICS = re.compile("teesql_(audit|manifest)_")
VARIABLES = {"$job": "teesql", "$instance": ".*", "$__rate_interval": "30s"}


def get(path, **parameters):
    url = f"{sys.argv[1]}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=30) as response:
        return json.load(response)["data"]


def panels(found, row=""):
    """All expressions with the titles of their panels and rows."""
    for panel in found:
        if panel["type"] == "row":
            row = panel["title"]
        for target in panel.get("targets", []):
            yield row, panel["title"], target["expr"]
        yield from panels(panel.get("panels", []), row)


def has_data(expression, start, end):
    """Whether the expression had a value at any time: a quantile of nothing is NaN."""
    for name, value in VARIABLES.items():
        expression = expression.replace(name, value)
    found = get("query_range", query=expression, start=start, end=end, step=5)["result"]
    return any(value != "NaN" for series in found for _, value in series["values"])


def main():
    now = float(get("query", query="time()")["result"][1])
    start = now - 3600
    missing = []
    asked = 0
    with open("docs/grafana/teesql.json", encoding="utf-8") as file:
        dashboard = json.load(file)
    for row, title, expression in panels(dashboard["panels"]):
        if row in UNUSED:
            continue
        asked += 1
        if not has_data(expression, start, now):
            missing.append(f"panel {row} / {title}: {expression}")
    rules = [rule for group in get("rules")["groups"] for rule in group["rules"]]
    for rule in rules:
        asked += 1
        if rule["health"] != "ok":
            missing.append(f"alert {rule['name']}: {rule['health']} {rule.get('lastError', '')}")
        for metric in set(re.findall(r"\b(?:teesql_\w+|up)\b", rule["query"])):
            if not UNUSED_METRICS.match(metric) and not has_data(metric, start, now):
                missing.append(f"alert {rule['name']}: no metric {metric}")
    firing = sorted({alert["labels"]["alertname"] for alert in get("alerts")["alerts"] if alert["state"] == "firing"})
    print(f"{asked} expressions, of which {len(rules)} alerts. Firing now: {', '.join(firing)}")
    # A cluster on a mock TDX must not look like one in production.
    if "TeeSQLDangerousRoot" not in firing:
        missing.append("alert TeeSQLDangerousRoot does not fire")
    for line in missing:
        print(f"no data: {line}")
    if missing:
        sys.exit(1)
    print("every expression has data, except of " + ", ".join(f"{row} ({name} is off)" for row, name in UNUSED.items()))


main()
