"""`init` in repositories of the kinds that people have: what it finds, writes and measures."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from autohypothesis.engine.first_task import smallest_gain
from autohypothesis.engine.foreign_script import find_scripts, read_script
from autohypothesis.engine.metric_lines import find_metrics
from autohypothesis.engine.project import todays_tag
from tests.conftest import NewRepository, called, run_git

NANO = {
    "README.md": "```sh\npython data/tiny/prepare.py\npython train.py config/tiny.py\n```\n",
    ".gitignore": "*.bin\n",
    "config/tiny.py": "dataset = 'tiny'\nmax_iters = 4\n",
    "data/tiny/prepare.py": "print('made')\n",
    "data/tiny/train.bin": "abc",
    "data/large/prepare.py": "",
    "data/large/train.bin": "0" * 100,
    "configurator.py": "import sys\nfrom ast import literal_eval\nfor word in sys.argv[1:]:\n"
    "    if '=' not in word:\n        exec(open(word).read())\n    else:\n"
    "        key, value = word[2:].split('=')\n        globals()[key] = literal_eval(value)\n",
    "model.py": "class GPT: pass\n",
    "sample.py": "from model import GPT\nprint('loss 3')\n",
    "train.py": "import os, random\nfrom model import GPT\nmax_iters = 8\ndataset = 'large'\n"
    "learning_rate = 6e-4\nseed = 1337\nexec(open('configurator.py').read())\n"
    "data_dir = os.path.join('data', dataset)\nrandom.seed(seed)\n"
    "open(os.path.join(data_dir, 'train.bin'), 'rb').read()\nfor step in range(max_iters):\n"
    "    losses = {'train': 2 - step / 8, 'val': 2 - step / 10}\n"
    "    print(f\"step {step}: train loss {losses['train']:.4f}, val loss {losses['val']:.4f}\")\n"
    "    print(f'iter {step}: loss {1.5:.4f}, time {3.2:.2f}ms')\n",
}
TRAINER = {
    "README.md": "```bash\npython run_clm.py \\\n"
    "  --model_name_or_path gpt2 \\\n  --lr 1e-4\n```\n",
    ".gitignore": "/data/\n",
    "data/train.json": "[1]",
    "run_clm.py": "import argparse, json, os, random\n\ndef main():\n"
    "    parser = argparse.ArgumentParser()\n"
    "    parser.add_argument('--model_name_or_path', required=True)\n"
    "    parser.add_argument('--train_file', default='data/train.json')\n"
    "    parser.add_argument('--lr', type=float, default=5e-5)\n    args = parser.parse_args()\n"
    "    json.load(open(args.train_file))\n"
    "    rng = random.Random(int(os.environ['SEED']))\n    for epoch in range(3):\n"
    "        print({'loss': 2.0, 'learning_rate': args.lr, 'epoch': epoch})\n"
    "        print({'eval_loss': 1.9 - epoch / 10, 'eval_runtime': 1.2, 'epoch': epoch})\n"
    "    print('***** eval metrics *****')\n"
    "    print(f'  eval_loss               =     {1.5 + int(os.environ[\"SEED\"]) / 1000:.4f}')\n\n"
    "if __name__ == '__main__':\n    main()\n",
}
LIGHTNING = {
    ".gitignore": "datasets\n",
    "datasets/x.csv": "1,2\n",
    "configs/fit.yaml": "data:\n  path: datasets/x.csv\ntrainer: {max_epochs: 2}\n",
    "litmodel.py": "class Lit:\n    def validation_step(self, batch, i):\n"
    "        self.log('val_loss', 1.0, prog_bar=True)\n        self.log('val_acc', 1.0)\n",
    "tests/test_train.py": "def test_it():\n    model.fit(1)\n",
    "main.py": "import os, sys, yaml\nimport litmodel\n"
    "config = yaml.safe_load(open('configs/fit.yaml'))\nopen(config['data']['path']).read()\n"
    "for epoch in range(config['trainer']['max_epochs']):\n"
    "    sys.stdout.write(f'\\rEpoch {epoch}: 100%|##| 9/9 [9.1it/s, val_loss=0.{9 - epoch}]')\n"
    "print()\nvalue = 0.4 + int(os.environ['SEED']) % 2 / 50\n"
    "print('┃      Validate metric      ┃       DataLoader 0        ┃')\n"
    "print(f'│          val_acc          │    {0.9:.12f}         │')\n"
    "print(f'│         val_loss          │    {value:.12f}         │')\n",
}
SCIKIT = {
    ".gitignore": "data/\n",
    "data/iris.csv": "1,2\n",
    "src/train_model.py": "import csv\nfrom pathlib import Path\n"
    "DATA = Path(__file__).resolve().parent.parent / 'data' / 'iris.csv'\nMAX_DEPTH = 3\n"
    "class Model:\n    def fit(self, rows): return self\n"
    "def main():\n    rows = list(csv.reader(open(DATA)))\n    Model().fit(rows)\n"
    "    print(f'Training samples: {len(rows)}')\n"
    "    print('Test accuracy: %.4f' % (0.9 + MAX_DEPTH / 100))\n"
    "if __name__ == '__main__':\n    main()\n",
}


def test_a_setting_of_script_and_config_is_named_where_it_is_left_alone(
    tmp_path: Path, new_repository: NewRepository
) -> None:
    config = NANO["config/tiny.py"] + "learning_rate = 1e-3\ndropout = 0.2\n"
    root = new_repository(tmp_path / "r", {**NANO, "config/tiny.py": config})
    _, report, said = ran(root, "--dry-run")
    assert "learning_rate (in train.py and config/tiny.py)" in said
    assert list(report["knobs"]) == ["dropout"]


def ran(root: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    answer = called("init", *words, "--json", cwd=root)
    assert answer.stdout, answer.stderr
    return answer.returncode, json.loads(answer.stdout), answer.stderr


@pytest.mark.parametrize(
    ("files", "start", "metric", "data", "values"),
    [
        (NANO, "train.py config/tiny.py", "val_loss", "data/tiny/train.bin", (1.7, 1.7)),
        (
            TRAINER, "run_clm.py --model_name_or_path gpt2 --lr 1e-4", "eval_loss",
            "data/train.json", (1.542, 1.543),
        ),
        (LIGHTNING, "main.py", "val_loss", "datasets/x.csv", (0.4, 0.42)),
        (SCIKIT, "src/train_model.py", "test_accuracy", "data/iris.csv", (0.93, 0.93)),
    ],
    ids=["nanogpt", "trainer", "lightning", "scikit"],
)  # fmt: skip
def test_a_repository_of_a_usual_kind_has_its_task_and_its_noise(
    tmp_path: Path, own_locks: Path, new_repository: NewRepository, files: dict[str, str],
    start: str, metric: str, data: str, values: tuple[float, float],
) -> None:  # fmt: skip
    root = new_repository(tmp_path / "r", files)
    code, report, said = ran(root)
    assert code == 0, said
    assert report["script"] == start.split()[0]
    assert report["command"] == ["python", *start.split()]
    found = report["metric"]["name"], report["metric"]["direction"], report["metric"]["take"]
    take = "only" if files is SCIKIT else "last"
    assert found == (metric, "maximize" if "accuracy" in metric else "minimize", take)
    assert ("take:" in (root / "task.yaml").read_text()) == (take == "last"), "printed once"
    assert [entry["path"] for entry in report["data"]] == [data]
    assert [run["value"] for run in report["runs"]] == pytest.approx(list(values))
    noise = abs(values[0] - values[1])
    assert report["noise"] == pytest.approx(noise)
    task = yaml.safe_load((root / "task.yaml").read_text())
    assert task["objective"]["min_delta"] == pytest.approx(report["smallest_gain"])
    assert report["smallest_gain"] == pytest.approx(2 * noise)
    assert called("task", "check", ".", cwd=root).returncode == 0
    assert ("max_iters, which would buy score" in said) == (files is NANO)
    assert list(task.get("knobs", {})) == (["learning_rate"] if files is NANO else [])
    assert set(task["artifacts"]) >= {word for word in start.split() if word.endswith(".py")}
    assert said.index("script") < said.index("baseline 1"), "it says what it found, then runs"
    assert any("SEED" in gap["what"] for gap in report["missing"]) == (noise == 0)
    assert run_git(root, "status", "--porcelain").split() == ["??", "task.yaml"]


def test_defaults_of_arguments_are_knobs_where_the_command_does_not_give_them(
    tmp_path: Path, own_locks: Path, new_repository: NewRepository
) -> None:
    script = TRAINER["run_clm.py"].replace("{1.5 +", "{1.5 + args.lr +")
    root = new_repository(tmp_path / "r", {**TRAINER, "run_clm.py": script})
    _, report, said = ran(root, "--no-run")
    gap = next(gap for gap in report["missing"] if "search" in gap["what"])
    assert "the command gives --lr, so that no default of it counts" in gap["what"]
    refused = called("run-experiment", "--set", "lr=1", cwd=root)
    assert "lr is what `run.command` of the task gives" in refused.stderr
    (root / "task.yaml").unlink()
    command = "python run_clm.py --model_name_or_path gpt2"
    assert f"init --command '{command}'" in gap["remedy"]
    _, report, said = ran(root, "--command", command)
    assert list(report["knobs"]) == ["lr"] and "`search`" not in said
    answer = called("run-experiment", "--set", "lr=1", cwd=root)
    assert answer.stdout.startswith("2.542000"), answer.stderr
    shown = called("show", answer.stdout.split("/runs/")[1].split("/")[0], "--json", cwd=root)
    assert json.loads(shown.stdout)["config"] == {"train_file": "data/train.json", "lr": 1.0}


def test_a_file_with_settings_is_named_where_search_has_nothing_to_turn(
    tmp_path: Path, new_repository: NewRepository
) -> None:
    root = new_repository(tmp_path / "r", LIGHTNING)
    _, report, _ = ran(root, "--no-run")
    assert "configs/fit.yaml has its settings" in report["missing"][-1]["what"]


def test_a_search_goes_on_with_what_init_wrote(
    tmp_path: Path, own_locks: Path, new_repository: NewRepository
) -> None:
    root = new_repository(tmp_path / "r", SCIKIT)
    code, report, _ = ran(root)
    assert code == 0 and report["next"] == "python orchestrator.py run-loop --max 20"
    answer = called("run-experiment", "--set", "MAX_DEPTH=5", "--settle", cwd=root)
    assert answer.returncode == 0 and "keep: improved" in answer.stderr


def test_a_search_takes_in_the_commit_of_its_task_file_and_no_other_commit(
    tmp_path: Path, own_locks: Path, new_repository: NewRepository
) -> None:
    """`init` measures before its file can be committed; what is kept after that is adopted."""
    root = new_repository(tmp_path / "r", SCIKIT)
    ran(root)
    run_git(root, "add", "task.yaml")
    run_git(root, "commit", "-qm", "the task")
    committed = run_git(root, "rev-parse", "HEAD")
    loop = called("run-loop", "--max", "1", cwd=root)
    assert loop.returncode == 0 and f"goes on from your commit {committed[:7]}" in loop.stderr
    assert "1 baseline" in loop.stderr, "the commit is measured before an idea is tried on it"
    called("run-experiment", "--set", "MAX_DEPTH=5", "--settle", cwd=root)
    assert called("adopt", cwd=root).returncode == 0
    kept = run_git(root, "rev-parse", "HEAD")
    assert run_git(root, "log", "--format=%H", "-2").split() == [kept, committed]
    (root / "notes.md").write_text("mine\n")
    run_git(root, "add", "notes.md")
    run_git(root, "commit", "-qm", "notes")
    loop = called("run-loop", "--max", "1", cwd=root)
    assert loop.returncode == 0 and "your commit" not in loop.stderr
    assert "notes.md" not in run_git(
        root, "ls-tree", "--name-only", f"refs/autohypothesis/reference/{todays_tag()}"
    )


def test_the_reference_is_measured_before_ideas_where_the_noise_became_the_threshold(
    tmp_path: Path, own_locks: Path, new_repository: NewRepository
) -> None:
    """`init` measures under another `min_delta` than the search that follows it."""
    noisy = "RATE = 0.4\nprint('val_loss:', 1 + RATE + int(os.environ['SEED']) / 1000)\n"
    root = new_repository(tmp_path / "r", {"train.py": f"import os\n{noisy}"})
    assert ran(root)[1]["smallest_gain"] == pytest.approx(0.002)
    loop = called("run-loop", "--max", "2", cwd=root)
    assert loop.returncode == 0 and "2 of 2 experiments: 1 replicate, 1 " in loop.stderr


def test_a_clone_of_the_project_keeps_the_task_that_it_has(
    tmp_path: Path, new_repository: NewRepository
) -> None:
    task = "id: pretrain\nroot: repository\nartifacts: [train.py]\n"
    files = {"train.py": "", "prepare.py": '"--locate" "--preflight" "--score"'}
    root = new_repository(tmp_path / "r", {**files, "tasks/pretrain/task.yaml": task})
    code, report, _ = ran(root, "--no-run")
    assert code == 0 and report["task_file"] == str(root / "tasks/pretrain/task.yaml")
    assert not (root / "task.yaml").exists()


def test_a_script_that_leaves_all_to_its_modules_runs_in_its_own_folder(
    tmp_path: Path, own_locks: Path, new_repository: NewRepository
) -> None:
    files = {
        "pkg/train.py": "import helpers\nopen('data/x.csv').read()\nhelpers.report(3)\n",
        "pkg/helpers.py": "def report(f1):\n    print('train loss', 9)\n    print('f1', f1)\n",
        "pkg/data/x.csv": "1", ".gitignore": "x.csv\n",
    }  # fmt: skip
    root = new_repository(tmp_path / "r", files)
    code, report, said = ran(root)
    assert code == 0, said
    assert (report["cwd"], report["command"]) == ("pkg", ["python", "train.py"])
    assert report["metric"]["name"] == "f1", "a training loss only when there is no other"
    assert [entry["path"] for entry in report["data"]] == ["pkg/data/x.csv"]


def test_without_a_run_it_writes_the_file_or_only_shows_it(
    tmp_path: Path, own_locks: Path, new_repository: NewRepository
) -> None:
    root = new_repository(tmp_path / "r", SCIKIT)
    shown = called("init", "--dry-run", cwd=root)
    assert shown.returncode == 0 and "artifacts:" in shown.stdout
    assert not (root / "task.yaml").exists() and not (root / "research").exists()
    code, report, _ = ran(root, "--no-run")
    assert code == 0 and report["written"] and not report["runs"]
    assert (root / "task.yaml").is_file() and not (root / "research").exists()


def test_a_task_file_that_is_there_stays_and_is_measured(
    tmp_path: Path, own_locks: Path, new_repository: NewRepository
) -> None:
    mine = (
        "id: mine\nartifacts: [main.py]\nrun: {include: [/datasets/]}\n"
        "scorer: {type: log, parse: {take: last}}\n"
        "objective: {metric: val_loss, min_delta: 0.01}\n"
    )
    root = new_repository(tmp_path / "r", {**LIGHTNING, "task.yaml": mine})
    code, report, _ = ran(root)
    assert code == 0 and not report["written"]
    assert (root / "task.yaml").read_text() == mine
    assert report["smallest_gain"] == pytest.approx(0.04)
    assert "min_delta 0.01 is under the noise" in report["missing"][0]["what"]
    refused = called("init", "--metric", "val_acc", cwd=root)
    assert refused.returncode == 2 and "says what --metric would" in refused.stderr


def test_a_metric_that_only_the_log_shows_is_taken_from_the_log(
    tmp_path: Path, own_locks: Path, new_repository: NewRepository
) -> None:
    text = "name = '_'.join(['dev', 'loss'])\nfor n in range(2):\n    print(name + f': 1.{n}')\n"
    root = new_repository(tmp_path / "r", {"train.py": text})
    code, report, said = ran(root, "--script", "train.py")
    assert code == 0, said
    assert (report["metric"]["name"], report["metric"]["take"]) == ("dev_loss", "last")
    assert [run["value"] for run in report["runs"]] == [None, 1.1, 1.1]


def test_a_loss_of_the_training_beside_the_loss_is_another_metric(
    tmp_path: Path, own_locks: Path, new_repository: NewRepository
) -> None:
    text = "print('train loss', 9)\nprint('loss', 3)\n"
    root = new_repository(tmp_path / "r", {"train.py": text})
    code, report, said = ran(root)
    assert code == 0, said
    assert (report["metric"]["name"], report["metric"]["take"]) == ("loss", "last")
    assert [run["value"] for run in report["runs"]] == [3, 3]


@pytest.mark.parametrize(
    "form", ["print('Val acc {n}:', {v})", "print('Val acc {n}: ' + str({v}))"]
)
def test_two_accuracies_with_notes_are_two_metrics_and_the_choice_is_named(
    tmp_path: Path, own_locks: Path, new_repository: NewRepository, form: str
) -> None:
    notes = (("(top-1)", 71.2), ("(top-5)", 90.1))
    lines = (form.format(n=note, v=value) for note, value in notes)
    root = new_repository(tmp_path / "r", {"train.py": "\n".join(lines)})
    code, report, said = ran(root)
    assert code == 0, said
    assert report["metric"]["name"] == "Val acc (top-1)"
    assert "maximize Val acc (top-1) (train.py:1)" in said
    assert "others: Val acc (top-5); --metric NAME takes one" in said
    assert [run["value"] for run in report["runs"]] == [71.2, 71.2]
    task = (root / "task.yaml").read_text()
    assert '# metric: "Val acc (top-5)"' in task and "take:" not in task
    (root / "task.yaml").unlink()
    assert ran(root, "--metric", "Val acc (top-5)")[1]["runs"][0]["value"] == 90.1


def test_two_accuracies_whose_notes_only_the_log_shows_are_told_apart_by_a_run(
    tmp_path: Path, own_locks: Path, new_repository: NewRepository
) -> None:
    text = "for k in (1, 5):\n    print(f'accuracy (top-{k}): {0.1 * k}')\n"
    root = new_repository(tmp_path / "r", {"train.py": text})
    code, report, said = ran(root)
    assert code == 0, said
    assert "accuracy (top-1) (as the log has it)" in said and "others: accuracy (top-5)" in said
    assert [run["value"] for run in report["runs"]] == [0.5, 0.1, 0.1]
    assert report["metric"]["take"] == "only"


def test_a_metric_of_every_epoch_is_scored_by_its_last_or_its_best_value_as_the_task_says(
    tmp_path: Path, own_locks: Path, new_repository: NewRepository
) -> None:
    text = "for n in range(40):\n    print(f'val_loss: {abs(n - 20) + 0.5}')\n"
    root = new_repository(tmp_path / "r", {"train.py": text})
    code, report, said = ran(root)
    assert code == 0 and report["runs"][0]["value"] == 19.5, said
    task = (root / "task.yaml").read_text()
    words = "The baseline printed it 40 times: `last` is 19.5, `best` 0.5."
    assert words in task and words in said and "parse: {take: last}" in task
    (root / "task.yaml").write_text(task.replace("take: last", "take: best"))
    assert ran(root)[1]["runs"][0]["value"] == 0.5


def test_a_second_value_that_the_source_does_not_show_is_measured_as_the_last(
    tmp_path: Path, own_locks: Path, new_repository: NewRepository
) -> None:
    text = "import os\nos.write(1, b'val_loss: 3\\n')\nprint('val_loss:', 2)\n"
    root = new_repository(tmp_path / "r", {"train.py": text})
    code, report, said = ran(root)
    assert code == 0, said
    assert [run["value"] for run in report["runs"]] == [None, 2, 2]
    assert "take: last" in (root / "task.yaml").read_text()


def test_a_program_in_another_language_is_run_as_the_user_says(
    tmp_path: Path, own_locks: Path, new_repository: NewRepository
) -> None:
    root = new_repository(tmp_path / "r", {"fit.sh": "echo rmse: 2.$SEED\n"})
    assert "--command 'bash fit.sh'" in called("init", "--script", "fit.sh", cwd=root).stderr
    code, report, said = ran(root, "--command", "bash fit.sh")
    assert code == 0, said
    assert (report["script"], report["command"]) == ("fit.sh", ["bash", "fit.sh"])
    assert [run["value"] for run in report["runs"]] == [None, 2.42, 2.43]


def test_what_a_script_cannot_start_without_is_named_and_nothing_is_run(
    tmp_path: Path, own_locks: Path, new_repository: NewRepository
) -> None:
    text = "import argparse\nimport no_such_package\nparser = argparse.ArgumentParser()\n" \
        "parser.add_argument('config')\nparser.parse_args()\nprint('val_loss:', 1)\n"  # fmt: skip
    root = new_repository(tmp_path / "r", {"train.py": text})
    code, report, _ = ran(root)
    assert code == 1 and not report["runs"]
    assert "cannot start without config" in report["missing"][0]["what"]
    assert "init --command 'python train.py CONFIG ...'" in report["missing"][0]["remedy"]
    assert not (root / "task.yaml").exists(), "how it is started is not known"
    assert "pip install no_such_package" in report["missing"][1]["remedy"]


def test_a_baseline_that_fails_shows_the_end_of_its_log_and_what_is_missing(
    tmp_path: Path, own_locks: Path, new_repository: NewRepository
) -> None:
    text = (
        "name = ''.join(['he', 'ld'])\nprint('begun')\nopen(name).read()\nprint('val_loss:', 1)\n"
    )
    root = new_repository(tmp_path / "r", {"train.py": text, ".gitignore": "held\n", "held": "1"})
    answer = called("init", cwd=root)
    assert answer.returncode == 1
    assert "begun" in answer.stdout and "val_loss: 1" not in answer.stdout
    assert "which git does not track: run: {include: ['/held']}" in answer.stdout


@pytest.mark.parametrize(
    ("files", "words", "said"),
    [
        ({"lib.py": "A = 1\n"}, [], "and new.py is in no commit; commit it first"),
        ({"train.py": "print('loss: 1')\n"}, ["--script", "trian.py"], "did you mean 'train.py'"),
        ({"a.txt": ""}, ["--script", "new.py"], "commit it first: git add new.py"),
        (
            {"train.py": "a = 1\nb = (\n"},
            [],
            "train.py line 2 does not parse: '(' was never closed",
        ),
        (
            {"train.py": "a =\n"},
            ["--script", "train.py"],
            "train.py line 1 does not parse: invalid",
        ),
    ],
)
def test_without_a_script_it_says_what_to_do(
    tmp_path: Path,
    new_repository: NewRepository,
    files: dict[str, str],
    words: list[str],
    said: str,
) -> None:
    root = new_repository(tmp_path / "r", files)
    (root / "new.py").write_text("print(1)\n")
    answer = called("init", *words, cwd=root)
    assert answer.returncode == 2 and said in answer.stderr
    assert not (root / "task.yaml").exists()


def test_a_folder_without_a_commit_says_how_to_make_one(tmp_path: Path) -> None:
    assert "git init" in called("init", str(tmp_path), cwd=tmp_path).stderr
    run_git(tmp_path, "init", "-q")
    assert "git commit" in called("init", str(tmp_path), cwd=tmp_path).stderr


# ── the reading of scripts ──────────────────────────────────────────────────────────────────


def test_the_likeliest_script_comes_first(tmp_path: Path) -> None:
    training = "import torch\nloss.backward()\nprint(f'val_loss: {loss}')\n"
    files = {
        "eval.py": "print(f'val_loss: {1}')\n", "train.py": training, "lib/loop.py": training,
        "tests/train.py": training, "setup.py": "setup()\n", "broken.py": "def (\n",
    }  # fmt: skip
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = [script.path for script in find_scripts(tmp_path, files)]
    assert found[:2] == ["train.py", "lib/loop.py"] and "setup.py" not in found


IN_PARTS = {
    "main.py": "from absl import app\nimport train\n\ndef main(argv):\n    train.run()\n\n"
    "if __name__ == '__main__':\n    app.run(main)\n",
    "train.py": "def run():\n    print('test_loss: %.4f' % 1.0)\n",
    "train_test.py": "import train\n\nif __name__ == '__main__':\n    train.run()\n",
    "plot.py": "import train\nprint('done')\n",
    "configs/default.py": "def get_config():\n    return {}\n",
    "README.md": "`python main.py --workdir=/tmp/m --config=configs/default.py`\n",
}


def test_the_file_that_starts_a_training_of_another_file_is_the_script(
    tmp_path: Path, new_repository: NewRepository
) -> None:
    root = new_repository(tmp_path / "r", IN_PARTS)
    _, report, said = ran(root, "--dry-run")
    assert report["script"] == "main.py" and report["metric"]["name"] == "test_loss", said
    assert report["configs"] == ["configs/default.py"]


def test_what_is_printed_behind_the_name_of_held_out_data_is_the_objective(
    tmp_path: Path, new_repository: NewRepository
) -> None:
    script = (
        "for epoch in range(3):\n    loss.backward()\n"
        "    print('Train Epoch: {} loss: {:.6f}'.format(epoch, loss))\n"
        "print('\\nTest set: Average loss: {:.4f}, Accuracy: {}/{}\\n'.format(loss, 9, 10))\n"
        "print(f'[val] top: {1.0} loss: {0.5}')\n"
    )
    root = new_repository(tmp_path / "r", {"main.py": script})
    report = ran(root, "--dry-run")[1]
    assert report["metric"]["name"] == "average_loss", "`loss` is that of training as well"


def test_beside_constants_in_capitals_those_in_small_letters_are_turned_as_well(
    tmp_path: Path, new_repository: NewRepository
) -> None:
    script = "batch_size = 128\nlearning_rate = 1e-3\nDROPOUT = 0.5\nmodel.fit(batch_size)\n"
    root = new_repository(tmp_path / "r", {"train.py": script})
    assert list(ran(root, "--dry-run")[1]["knobs"]) == ["batch_size", "learning_rate", "DROPOUT"]


def test_a_path_is_put_together_from_the_folder_of_the_script_and_its_settings(
    tmp_path: Path,
) -> None:
    (tmp_path / "pkg").mkdir()
    (tmp_path / "tiny.py").write_text("name = 'tiny'\n")
    (tmp_path / "pkg/train.py").write_text(
        "from pathlib import Path\nHERE = Path(__file__).parent\nname = 'large'\n"
        "open(HERE / 'data' / f'{name}.bin')\n"
    )
    facts = read_script(tmp_path, "pkg/train.py", ["pkg/train.py", "tiny.py"], ["tiny.py"])
    assert "pkg/data/tiny.bin" in facts.paths and "pkg/data/large.bin" not in facts.paths


NAMES = st.sampled_from(["val_loss", "test accuracy", "eval/f1", "val bpb", "Dev PPL", "rmse"])
WAYS = st.sampled_from(
    [
        "print(f'{name}: {{x:.3f}}')", "print('{name}', x)", "print('{name}:', x + x * 2)",
        "print('{name} = %.2f' % x)",
        "print('{name}: {{}}'.format(x))", "print({{'{name}': x}})",
        "import json\nprint(json.dumps({{'{name}': x}}))", "print('done, {name}=' + str(x))",
    ]
)  # fmt: skip


@given(name=NAMES, way=WAYS)
def test_a_metric_has_in_the_source_the_name_that_it_has_in_the_log(name: str, way: str) -> None:
    text = f"x = 1.25\n{way.format(name=name)}\n"
    log = io.StringIO()
    with redirect_stdout(log):
        exec(text, {})
    printed = [metric.name for metric in find_metrics(log.getvalue())]
    assert [metric.name for metric in _read(text).metrics] == printed != []


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
def test_any_text_can_be_read_as_a_script(text: str) -> None:
    assert _read(text).path == "train.py"


def _read(text: str) -> Any:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "train.py").write_text(text, encoding="utf-8", errors="surrogatepass")
        find_scripts(Path(folder), ["train.py"])
        return read_script(Path(folder), "train.py", ["train.py"])


@given(st.floats(0, 1e6))
def test_the_smallest_gain_is_at_least_twice_the_difference(difference: float) -> None:
    assert 2 * difference * (1 - 1e-9) <= smallest_gain(difference) <= 2.3 * difference
