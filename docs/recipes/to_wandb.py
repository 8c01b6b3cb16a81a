"""Sends past runs of imp-flow to Weights & Biases:  imp-flow runs --json | python to_wandb.py [RUN...]

Each run, and each point of a sweep, becomes a run of W&B in the project with the pipeline's name. W&B's own variables apply: WANDB_API_KEY,
WANDB_ENTITY, WANDB_BASE_URL, WANDB_DIR, and WANDB_MODE=offline, which writes folders for `wandb sync`. What is there already is left alone,
so it can be sent again at any time. What may be secret is left out, unless --everything is given. It needs recorded.py beside it. Tried
offline with wandb 0.31.
"""

import glob
import hashlib
import os
import re

import recorded
import wandb

OFFLINE = os.environ.get("WANDB_MODE") == "offline"
FOLDER = os.path.join(os.environ.get("WANDB_DIR", "."), "wandb")


def is_sent(project, identity):
    """Whether a complete upload is there. What an earlier one left half done is deleted."""
    if OFFLINE:
        # A mark beside the folder: a folder alone may be that of an upload that was interrupted.
        return os.path.exists(mark(identity))
    api = wandb.Api()
    path = "/".join(filter(None, [os.environ.get("WANDB_ENTITY") or api.default_entity, project, identity]))
    try:
        run = api.run(path)
    except (wandb.errors.CommError, ValueError) as error:
        # Anything else, such as a network that is down, does not tell whether it is there.
        if "could not find run" in str(error).lower():
            return False
        raise
    if run.summary.get("imp_flow_complete"):
        return True
    run.delete()
    return False


def mark(identity):
    return os.path.join(FOLDER, f"imp-flow-{identity}.sent")


def send(run, point):
    """Returns whether it was sent."""
    name = recorded.name(run, point)
    project = re.sub(r"[/\\#?%:]", "-", run["pipeline"])
    # Of a run and a point always the same one, in the letters that W&B allows.
    identity = hashlib.sha256(recorded.identity(run, point).encode()).hexdigest()[:16]
    if is_sent(project, identity):
        return False
    for folder in glob.glob(os.path.join(FOLDER, f"offline-run-*-{identity}")) if OFFLINE else []:
        # Half done: its content would come twice.
        os.rename(folder, folder.replace("offline-run-", "interrupted-"))

    config = {stage["name"]: stage["config"] for stage in point["stages"] if stage["config"] is not None}
    config["imp_flow"] = {key: run[key] for key in ["id", "file", "overrides", "host", "made_by", "ending"]}
    config["imp_flow"]["origin"] = run.get("origin")
    new = wandb.init(project=project, id=identity, name=name, config=config, group=run["id"] if run["sweep"] else None)
    try:
        for stage in point["stages"]:
            if stage["metrics"]:
                # Stages count their steps separately.
                new.define_metric(f"{stage['name']}/step")
                new.define_metric(f"{stage['name']}/*", step_metric=f"{stage['name']}/step")
            for row in recorded.curve(stage):
                new.log({f"{stage['name']}/{name}": value for name, value in row.items()})
            for figure, value in recorded.figures(stage).items():
                new.summary[f"{stage['name']}/final/{figure}"] = value
        new.summary["imp_flow_complete"] = True
    except BaseException:
        # Without the mark it is sent again, and the next one can begin.
        new.finish(exit_code=1)
        raise
    new.finish(exit_code=0 if run["ending"] == "done" else 1)
    if OFFLINE:
        open(mark(identity), "w", encoding="utf-8").close()
    return True


if __name__ == "__main__":
    recorded.send_all(__doc__, send)
