"""Sends past runs of imp-flow to MLflow:  imp-flow runs --json | python to_mlflow.py [RUN...]

Each run, and each point of a sweep, becomes a run of MLflow in the experiment with the pipeline's name. MLFLOW_TRACKING_URI says where.
What is there already is left alone, so it can be sent again at any time. What may be secret is left out, unless --everything is given. It
needs recorded.py beside it. Tried with MLflow 3.
"""

import recorded
from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient

# MLflow's own limits: of a parameter's value, and of a request.
VALUE, BATCH = 6000, 100


def parameters(point):
    """`finetune.lora.rank` -> `8` of all stages, as their receipts have them."""
    found = {}

    def flatten(prefix, value):
        if isinstance(value, dict):
            for name, inner in value.items():
                flatten(f"{prefix}.{name}", inner)
        elif value is not None:
            found[prefix] = str(value)[:VALUE]

    for stage in point["stages"]:
        flatten(stage["name"], stage["config"])
    return found


def metrics(run, point):
    """The curve and the final figures of each stage."""
    ended = int((run["started"] + run["seconds"]) * 1000)
    for stage in point["stages"]:
        for row in recorded.curve(stage):
            step, time = int(row.pop("step", 0)), int(row.pop("time", run["started"]) * 1000)
            for name, value in row.items():
                yield Metric(f"{stage['name']}/{name}", value, time, step)
        for name, value in recorded.figures(stage).items():
            yield Metric(f"{stage['name']}/final/{name}", value, ended, 0)


def send(client, run, point):
    """Returns whether it was sent. What an earlier upload left half done is deleted and sent again."""
    identity = recorded.identity(run, point)
    experiment = client.get_experiment_by_name(run["pipeline"])
    experiment = experiment.experiment_id if experiment else client.create_experiment(run["pipeline"])
    quoted = identity.replace("\\", "\\\\").replace("'", "\\'")
    for old in client.search_runs([experiment], f"tags.imp_flow_run = '{quoted}'"):
        if old.data.tags.get("imp_flow_complete"):
            return False
        client.delete_run(old.info.run_id)

    tags = {"imp_flow_run": identity, "ending": run["ending"], "host": run["host"], "imp_flow": run["made_by"]}
    repository = (run.get("origin") or {}).get("repository")
    if repository:
        tags["mlflow.source.git.commit"] = repository["commit"]
    new = client.create_run(experiment, int(run["started"] * 1000), tags, recorded.name(run, point)).info.run_id
    for part in batches(Param(*item) for item in parameters(point).items()):
        client.log_batch(new, params=part)
    for part in batches(metrics(run, point)):
        client.log_batch(new, metrics=part)
    if run["document"]:
        client.log_text(new, run["document"], "pipeline.toml")
    client.log_batch(new, tags=[RunTag("imp_flow_complete", "true")])
    state = {"done": "FINISHED", "failed": "FAILED"}.get(run["ending"], "KILLED")
    client.set_terminated(new, state, int((run["started"] + run["seconds"]) * 1000))
    return True


def batches(items):
    part = []
    for item in items:
        part.append(item)
        if len(part) == BATCH:
            yield part
            part = []
    if part:
        yield part


if __name__ == "__main__":
    client = MlflowClient()
    recorded.send_all(__doc__, lambda run, point: send(client, run, point))
