"""The same pipeline for imp-flow, ninja, doit, Luigi, Snakemake and DVC: stage i reads the output of stage i - 10 and writes
a small file. Times a first run and up-to-date runs, in alternating processes.

    python benches/peers/runner.py IMP_FLOW STAGES [TOOL ...]

IMP_FLOW must be built with the kind `synthetic`: `cargo bench --bench runner` does that and calls this script. Prints JSON.
"""

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

ROUNDS = 7
WIDTH = 10


def imp_flow(folder, stages, program):
    lines = ['name = "peers"']
    for i in range(stages):
        lines += [f"[stages.s{i}]", 'kind = "synthetic"', f'text = "{i}"']
        lines += [f'after = "s{i - WIDTH}"'] * (i >= WIDTH)
    (folder / "p.toml").write_text("\n".join(lines))
    return [program, "run", "p.toml", "--quiet"]


def ninja(folder, stages, _):
    lines = ["rule copy", "  command = cat $in > $out"]
    for i in range(stages):
        lines.append(f"build o{i}: copy {f'o{i - WIDTH}' if i >= WIDTH else f'i{i}'}")
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")
    return [tool("ninja")]


def doit(folder, stages, _):
    (folder / "dodo.py").write_text(
        f"""
def task_copy():
    for i in range({stages}):
        source = f"o{{i - {WIDTH}}}" if i >= {WIDTH} else f"i{{i}}"
        yield {{"name": str(i), "actions": [f"cat {{source}} > o{{i}}"], "file_dep": [source], "targets": [f"o{{i}}"]}}
"""
    )
    return [tool("doit"), "-v0"]


def luigi(folder, stages, _):
    (folder / "flow.py").write_text(
        f"""
import luigi, shutil

class Copy(luigi.Task):
    i = luigi.IntParameter()
    def requires(self):
        return [Copy(self.i - {WIDTH})] if self.i >= {WIDTH} else []
    def output(self):
        return luigi.LocalTarget(f"o{{self.i}}")
    def run(self):
        source = f"o{{self.i - {WIDTH}}}" if self.i >= {WIDTH} else f"i{{self.i}}"
        shutil.copy(source, f"o{{self.i}}")

class All(luigi.WrapperTask):
    def requires(self):
        return [Copy(i) for i in range({stages})]
"""
    )
    return [tool("luigi"), "--module", "flow", "All", "--local-scheduler", "--log-level", "ERROR"]


def snakemake(folder, stages, _):
    rules = [f"rule all:\n    input: [f'o{{i}}' for i in range({stages})]"]
    for i in range(stages):
        source = f"o{i - WIDTH}" if i >= WIDTH else f"i{i}"
        rules.append(f"rule r{i}:\n    input: '{source}'\n    output: 'o{i}'\n    shell: 'cat {{input}} > {{output}}'")
    (folder / "Snakefile").write_text("\n".join(rules) + "\n")
    return [tool("snakemake"), "--cores", str(os.cpu_count()), "--quiet", "all"]


def dvc(folder, stages, _):
    lines = ["stages:"]
    for i in range(stages):
        source = f"o{i - WIDTH}" if i >= WIDTH else f"i{i}"
        lines += [f"  s{i}:", f"    cmd: cat {source} > o{i}", f"    deps: [{source}]", f"    outs: [o{i}]"]
    (folder / "dvc.yaml").write_text("\n".join(lines) + "\n")
    subprocess.run([tool("dvc"), "init", "--no-scm", "--quiet"], cwd=folder, check=True)
    subprocess.run([tool("dvc"), "config", "core.analytics", "false"], cwd=folder, check=True)
    return [tool("dvc"), "repro", "--quiet"]


def tool(name):
    return str(pathlib.Path(sys.executable).parent / name)


def once(command, folder):
    # The Python tools import from the current folder.
    environment = os.environ | {"PYTHONPATH": ".", "PATH": f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        sys.exit(f"{command} failed:\n{done.stdout.decode()}\n{done.stderr.decode()}")
    return seconds


def main():
    program, stages, names = os.path.abspath(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
    root = pathlib.Path("target/bench-runner").absolute()
    shutil.rmtree(root, ignore_errors=True)
    commands, first = {}, {}
    for name in ["imp_flow", *names]:
        folder = root / name
        folder.mkdir(parents=True)
        for i in range(WIDTH):
            (folder / f"i{i}").write_text(str(i))
        commands[name] = (globals()[name](folder, stages, program), folder)
        first[name] = once(*commands[name])
    # A file younger than two seconds may change without a new timestamp, so imp-flow checks more until then.
    time.sleep(3)
    again = {name: [] for name in commands}
    for command in commands.values():
        once(*command)
    for _ in range(ROUNDS):
        for name, command in commands.items():
            again[name].append(once(*command))
    again = {name: statistics.median(times) for name, times in again.items()}
    print(json.dumps({"stages": stages, "first": first, "again": again}))


main()
