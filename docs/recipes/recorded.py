"""What imp-flow has recorded (`imp-flow runs --json` on standard input), for the scripts that send it elsewhere.

What may hold secrets is left out unless --everything is given: the values of `environment` of stages, the text of the pipeline, and what was
given with --set. Passwords and tokens in addresses imp-flow itself has hidden.
"""

import argparse
import hashlib
import json
import math
import sys

HIDDEN = "<hidden>"


def send_all(about, send):
    """Calls `send(run, point)` for each point of the runs that have ended, and exits. It says whether it has sent it, or raises."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", metavar="RUN", nargs="*", help="ids or names of runs; all if there are none")
    parser.add_argument("--everything", action="store_true", help="also what may hold secrets: environments, pipelines, --set")
    options = parser.parse_args()
    chosen, hidden = set(options.runs), set()
    sent = kept = failed = 0
    unknown = set(chosen)
    for run in map(json.loads, sys.stdin):
        unknown -= {run["id"], run["name"]}
        if run["ending"] == "running" or (chosen and not chosen & {run["id"], run["name"]}):
            continue
        if not options.everything:
            hidden |= hide(run)
        for point in run["points"]:
            try:
                if send(run, point):
                    sent += 1
                else:
                    kept += 1
            except Exception as error:  # of the service, or of a file: the others do not suffer for it
                failed += 1
                print(f"{name(run, point)}: not sent: {type(error).__name__}: {error}", file=sys.stderr)
    if hidden:
        print(f"left out, since it may be secret: {', '.join(sorted(hidden))} (--everything sends it)")
    for run in sorted(unknown):
        failed += 1
        print(f"{run}: there is no such run", file=sys.stderr)
    print(f"sent {sent}, already there {kept}" + (f", failed {failed}" if failed else ""))
    sys.exit(1 if failed else 0)


def hide(run):
    """Removes what may be secret. Returns what that was, in words."""
    hidden = {"the text of the pipeline"}
    run["document"] = None
    if run["overrides"]:
        hidden.add("what was given with --set")
        run["overrides"] = None
    for point in run["points"]:
        for stage in point["stages"]:
            environment = (stage["config"] or {}).get("environment")
            if environment:
                hidden.add("the values of `environment`")
                stage["config"]["environment"] = dict.fromkeys(environment, HIDDEN)
        if varies_environment(point):
            hidden.add("the values of `environment`")
            point["shown"] = f"point {run['points'].index(point) + 1}"
    return hidden


def varies_environment(point):
    """Whether the label of a point of a sweep has such a value, or one of `vars` that may be in it."""
    has_one = any((stage["config"] or {}).get("environment") for stage in point["stages"])
    paths = [path for path, _ in point["values"]]
    return any(".environment" in path or has_one and path.startswith("vars.") for path in paths)


def identity(run, point):
    """Of a run and a point always the same, whatever is left out."""
    label = point["label"]
    if varies_environment(point):
        label = hashlib.sha256(f"{run['id']}/{label}".encode()).hexdigest()[:16]
    return f"{run['id']}/{label}"


def name(run, point):
    """How the run or the point of a sweep is called."""
    return "/".join(filter(None, [run["name"] or run["id"], point.get("shown", point["label"])]))


def curve(stage):
    """The rows of a stage's curve: a step, the time, and the numbers at it."""
    if stage["metrics"]:
        with open(stage["metrics"], encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                yield {name: value for name, value in row.items() if is_number(value)}


def figures(stage):
    """The final figures of a stage that are numbers."""
    return {name: value for name, value in stage["results"].items() if is_number(value)}


def is_number(value):
    return isinstance(value, (int, float)) and math.isfinite(value)
