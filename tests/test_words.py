"""Paths on the command line: what is typed is the path, whatever characters it has; commas, ``${}`` stay Hydra's."""

import re
import shlex
import string

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tutelage.config import Config, Section, Strategy
from tutelage.config.compose import compose
from tutelage.config.path_values import PATH_KEYS, PATH_LIST_KEYS, PATTERN_KEYS, QUOTED, quote_paths
from tutelage.config.section import PathText
from tutelage.errors import UserError
from tutelage.runs.folder import RunFolder, read_config, write_config
from tutelage.strategies import distillation, lwf, noisy_student, teacher_student
from tutelage.sweeps.folder import SweepFolder
from tutelage.sweeps.space import build_grid, parse_dimensions

PARSER = OverridesParser.create()
FUNCTION = re.compile(r"\s*(bool|choice|float|glob|int|interval|range|shuffle|sort|str|tag)\(.*", re.DOTALL)
PRINTABLE = st.text(st.sampled_from(string.punctuation.replace(",", "") + " \\\\''\"\"aZ019üß猫") | st.characters())


def read_by_hydra(override: str) -> list[object]:
    """Return the values that Hydra reads in an override: several for a sweep."""
    (parsed,) = PARSER.parse_overrides(quote_paths([override]))
    if not parsed.is_sweep_override():
        return [parsed.value()]
    return [PARSER.parse_override(f"k={text}").value() for text in parsed.sweep_string_iterator()]


def is_path(text: str) -> bool:
    """Whether a text has nothing of what keeps Hydra's meaning in a path."""
    stripped = text.strip()
    return not ("," in text or stripped.lower() == "null" or FUNCTION.match(text) or QUOTED.fullmatch(stripped))


@given(PRINTABLE.filter(is_path), st.sampled_from([*PATH_KEYS, *PATTERN_KEYS]), st.sampled_from(["", "+", "++"]))
@example("2024", "data.root", "")
@example("007", "data.root", "")
@example("1e5", "init_from", "")
@example("true", "data.root", "++")
@example(".5", "data.root", "")
@example("[a", "data.unlabelled", "")
@example("sort(a|b),[0-9,]{1,3}", "data.group", "")
@example("K", "data.root", "")  # the sign of the kelvin, which is no letter to Hydra
@example("it's \\' a \"b\"\\", "data.root", "")
def test_any_text_without_a_comma_is_the_path_that_hydra_reads(text, key, prefix):
    override = f"{prefix}{key}={text}"
    assert read_by_hydra(override) == [text]
    quoted = quote_paths([override])
    assert quote_paths(quoted) == quoted


def is_unambiguous_in_a_list(text: str) -> bool:
    """Whether a text has no bracket, and neither begins a quotation nor escapes the comma after it."""
    return is_path(text) and not set(text) & set("[]{}") and text[0] not in "'\"" and text[-1] != "\\"


@settings(max_examples=40)
@given(st.lists(PRINTABLE.map(lambda text: text.strip() or "x").filter(is_unambiguous_in_a_list), min_size=2))
def test_commas_separate_the_values_of_a_sweep_and_the_entries_of_a_list(texts):
    assert read_by_hydra(f"data.root={','.join(texts)}") == texts
    override = f"strategy.teachers=[{', '.join(texts)}]"
    assert read_by_hydra(override) == [texts]
    assert quote_paths(quote_paths([override])) == quote_paths([override])


@pytest.mark.parametrize(
    ("typed", "values"),
    [
        ("a b's,c=d", ["a b's", "c=d"]),
        ("pool/{000..012}.tar", ["pool/{000..012}.tar"]),
        ("pipe:aws s3 cp s3://b/{0,1}.tar -", ["pipe:aws s3 cp s3://b/{0,1}.tar -"]),
        ("https://x.org/{a,{b,c}}.tar?k=v&l=#1,b", ["https://x.org/{a,{b,c}}.tar?k=v&l=#1", "b"]),
        ("a\\,b", ["a,b"]),
        ("'a,b'", ["a,b"]),
        ("\"a's\",'b'", ["a's", "b"]),
        ("null", [None]),
        ("null,x y", [None, "x y"]),
        ("", [""]),
        ("${oc.env:HOME,'/a b'}/x=y", ["${oc.env:HOME,'/a b'}/x=y"]),
        ("range(1,3)", [1, 2]),
        ("choice('a b',c)", ["a b", "c"]),
        ("photos(1),range (2)", ["photos(1)", "range (2)"]),
        ("'a' and 'b'", ["'a' and 'b'"]),
    ],
)
def test_commas_quotation_marks_references_and_functions_keep_hydras_meaning(typed, values):
    assert read_by_hydra(f"data.root={typed}") == values


def test_several_lists_of_teachers_are_a_sweep_and_brackets_may_be_part_of_a_path():
    assert read_by_hydra("strategy.teachers=[/x[1]/a b,'c,]'],[d=e]") == [["/x[1]/a b", "c,]"], ["d=e"]]
    assert read_by_hydra("strategy.teachers=[]") == [[]]


def test_other_keys_and_groups_stay_in_hydras_grammar():
    overrides = [
        "model.width=2",
        "data=digits",
        "data.mean=[0.5,0.5]",
        "-m",
        "+x={a:1}",
        "~data.root",
        "data.rooted=a b",
    ]
    assert quote_paths(overrides) == overrides


def path_keys_of(section: type[Section], prefix: str) -> set[str]:
    """Return the keys below a section whose type is a path, or a list of paths."""
    keys = set()
    for name, field in section.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            keys |= path_keys_of(field.annotation, f"{prefix}{name}.")
        elif str(PathText.__metadata__[-1].func) in str([field.annotation, field.metadata]):
            keys.add(f"{prefix}{name}")
    return keys


def test_every_path_of_the_schema_is_typed_without_quotation_marks():
    modules = (distillation, lwf, noisy_student, teacher_student)
    configs = {value for module in modules for value in vars(module).values() if isinstance(value, type)}
    strategies = [config for config in configs if issubclass(config, Strategy)]
    keys = path_keys_of(Config, "").union(*(path_keys_of(strategy, "strategy.") for strategy in strategies))
    assert len(strategies) == len(modules)
    assert keys == {*PATH_KEYS, *PATH_LIST_KEYS, *PATTERN_KEYS}


def test_a_run_gets_the_paths_that_were_typed():
    config = compose(
        [
            "data=image_folder",
            "recipe=none",
            "data.root=my [photos] #1 = Jürgen's",
            "data.unlabelled=s3://b/{000..012}.tar",
            "init_from=2024",
        ]
    )
    assert config.data.root == "my [photos] #1 = Jürgen's"
    assert (config.data.unlabelled, config.init_from) == ("s3://b/{000..012}.tar", "2024")


def test_a_run_stores_its_paths_as_they_are(tmp_path):
    config, folder = compose(["data=image_folder", "recipe=none", "data.root=\\${x"]), RunFolder(tmp_path)
    for root in (
        config.data.root,
        "2024",
        "007",
        "1e5",
        "true",
        "~",
        "a: b #c",
        "${oc.env:HOME}",
        "- x",
        " 'q'",
        "ü\\",
    ):
        data = config.data.model_copy(update={"root": root})
        write_config(folder, config.model_copy(update={"data": data}).model_dump(mode="json"))
        assert read_config(folder).data.root == root


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("data.root=a,", "data.root=a,: there is nothing beside a comma; \\, is a comma in a path"),
        (
            "strategy.teachers=[a,,b]",
            "strategy.teachers=[a,,b]: there is nothing beside a comma; \\, is a comma in a path",
        ),
        (
            "data.root=${a b",
            "data.root='${a b': ${ begins a reference such as ${oc.env:HOME}; "
            "\\${ is no reference but these characters",
        ),
    ],
)
def test_what_cannot_be_a_path_is_one_line_with_the_way_out(typed, line):
    with pytest.raises(UserError) as raised:
        compose([typed])
    assert str(raised.value) == line


def test_a_config_file_may_name_a_folder_by_a_number_but_not_by_a_truth_value(tmp_path):
    config_dir = tmp_path / "it's = [mine]"
    file = config_dir / "experiment" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("# @package _global_\ndata:\n  root: 2024\n")
    assert compose(["experiment=mine"], [str(config_dir)]).data.root == "2024"
    file.write_text("# @package _global_\ndata:\n  root: true\n")
    with pytest.raises(UserError, match="data.root=True: .*string"):
        compose(["experiment=mine"], [str(config_dir)])


def test_a_sweep_names_its_jobs_by_the_paths_that_it_varies(tmp_path):
    typed = ["data.root=a b,c=d", "paths.outputs=my runs", "seed=3"]
    jobs = build_grid(parse_dimensions(typed))
    assert jobs == [(f"data.root='{root}'", "paths.outputs='my runs'", "seed=3") for root in ("a b", "c=d")]
    folder = SweepFolder(tmp_path)
    folder.begin(shlex.join(["tutelage", "train", "-m", *typed]))
    folder.set_job_count(len(jobs))
    folder.add_jobs(jobs)
    assert folder.describe_job(jobs[1]) == "run 2 of 2: data.root='c=d'"
