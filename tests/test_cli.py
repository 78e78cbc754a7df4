"""The command line: data on stdout, words on stderr, exit codes that mean one thing, and nothing heavy loaded early."""

import json
import subprocess
import sys

import pytest

from normstab.__main__ import main

LIGHT = [
    ["--help"],
    ["list"],
    ["list", "formats", "--json"],
    ["validate", "quickstart"],
    ["show", "quickstart", "--smoke"],
    ["schema"],
]


def run(*arguments):
    return subprocess.run([sys.executable, "-m", "normstab", *arguments], capture_output=True, text=True)


@pytest.mark.parametrize("arguments", LIGHT, ids=" ".join)
def test_light_commands_load_neither_torch_nor_numba_nor_numpy(arguments):
    code = (
        f"import sys; from normstab.__main__ import main; code = main({arguments!r}); "
        "print(code, sorted({'torch', 'numba', 'numpy', 'matplotlib'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "0 []"


@pytest.mark.parametrize("arguments", [["--bogus"], ["lisst"], ["list", "normz"], []], ids=" ".join)
def test_bad_input_is_exit_code_2_with_words_on_stderr_only(arguments, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err and not captured.out
    assert "Traceback" not in captured.err


def test_validate_tells_the_problems_of_every_file_at_once(tmp_path, capsys):
    for name in ("first", "second"):
        (tmp_path / f"{name}.yaml").write_text("version: 1\nname: x\nbogus: 1\n")
    assert main(["validate", str(tmp_path)]) == 2
    complaints = capsys.readouterr().err
    assert "first.yaml:3:1" in complaints
    assert "second.yaml:3:1" in complaints


def test_quiet_says_nothing_of_a_valid_file(capsys):
    assert main(["validate", "quickstart", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_show_prints_the_cells_and_the_cost(capsys):
    assert main(["show", "quickstart", "--json"]) == 0
    outline = json.loads(capsys.readouterr().out)[0]
    assert outline["name"] == "quickstart"
    assert {cell["role"] for cell in outline["cells"]} == {"reference", "cell"}


def test_a_set_reaches_the_cells(capsys):
    assert main(["show", "quickstart", "--set", "train.epochs=7", "--json"]) == 0
    assert {cell["epochs"] for cell in json.loads(capsys.readouterr().out)[0]["cells"]} == {7}


def test_validate_and_show_ask_whether_the_usual_e4m3_was_meant(capsys):
    changed = ["quickstart", "--set", "grid.precision=[fp16, e4m3]"]
    for command in ("validate", "show"):
        assert main([command, *changed]) == 0
        captured = capsys.readouterr()
        assert "e4m3 has max 240 and inf; did you mean e4m3fn, max 448?" in captured.out + captured.err


def test_a_directory_without_scenarios_is_bad_input(tmp_path, capsys):
    assert main(["validate", str(tmp_path)]) == 2
    assert "normstab list scenarios" in capsys.readouterr().err


def test_json_is_all_of_stdout(capsys):
    assert main(["list", "norms", "--json"]) == 0
    captured = capsys.readouterr()
    assert "l1" in [row["name"] for row in json.loads(captured.out)]
    assert captured.err == ""


def test_doctor_gives_its_facts_as_json(capsys):
    assert main(["doctor", "--json"]) == 0
    assert "torch" in json.loads(capsys.readouterr().out)["versions"]


def test_the_module_is_the_command():
    done = run("list", "norms")
    assert done.returncode == 0
    assert "mean magnitude" in done.stdout


def test_debug_shows_the_traceback(capsys):
    assert main(["list", "normz", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err
