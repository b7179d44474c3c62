import pytest

from qlax.cli import flags
from qlax.cli.main import COMMANDS, main, parser


@pytest.mark.parametrize(
    ("words", "given"),
    [
        ("--reward-scale -1e-3", {"reward_scale": [-1e-3]}),
        ("--reward-scale=-1e-3 --lam 0", {"reward_scale": [-1e-3], "lam": [0.0]}),
        ("--reward-scale -.5 -2 1 --seed 3", {"reward_scale": [-0.5, -2.0, 1.0], "seed": 3}),
        ("--no-dueling --hidden 8,4", {"dueling": False, "hidden": (8, 4)}),
        ("--env-options low=-1 high=2", {"env_options": {"low": -1, "high": 2}}),
    ],
)
def test_settings_are_read_from_words(words, given):
    assert flags.given(parser().parse_args(["train", "cartpole", *words.split()])) == given


def test_a_switch_of_a_sweep_takes_several_values():
    for words, values in (("--dueling", [True]), ("--no-dueling", [False]), ("--dueling true false", [True, False])):
        assert flags.given(parser().parse_args(["sweep", "cartpole", *words.split()])) == {"dueling": values}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_has_every_argument_and_what_it_says(command, capsys):
    with pytest.raises(SystemExit, match="0"):
        main([command.name, "--help"])
    said = " ".join(capsys.readouterr().out.split())
    for argument in command.arguments:
        for word in argument.flags or [argument.options["metavar"]]:
            assert word in said
        assert argument.options["help"].split(" (")[0].split()[0] in said


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_says_the_default_of_every_flag_that_has_a_value(command):
    # The first flag of "several processes" gives the default of all three, and that of --config is TARGET.
    shared = {"--coordinator", "--num-processes", "--process-id", "--config"}
    for argument in command.arguments:
        has_value = argument.flags and argument.options.get("action") not in ("store_true", "store_const")
        if has_value and not argument.options.get("required") and not shared & {*argument.flags}:
            assert "(default: " in argument.options["help"], argument.names
            assert argument.options["help"].endswith(")"), argument.names
