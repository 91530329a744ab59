"""Bad input, made at random: profiles, grids, prompts and text files end in valid parameters or in one sentence."""

import copy
import functools
import json
import math
import unicodedata

import numpy as np
import pandas as pd
import pytest
import regex
import spectra
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from parameter_cells import TAGGED, injected, notebook
from spectral_collapse import curvature, sigma
from spectral_collapse.analysis import (
    anova,
    claims,
    correlation,
    detection,
    early_warning,
    forecast,
    report,
    rescue,
    slopes,
    statistics,
)
from spectral_collapse.experiment import factors, measure
from spectral_collapse.model import build, generate, precursors, train
from spectral_collapse.paper import findings
from spectral_collapse.record import params, paths, schema
from spectral_collapse.text import corpora, prompts, storyworld
from spectral_collapse.text import metrics as text_metrics

SMOKE = params.load("smoke").model_dump()
SMOKE_TEXT = (paths.PARAMS / "smoke.yaml").read_bytes()
GRID = params.read_yaml(paths.PARAMS / "ablations.yaml")
DEFAULTS = {"smoke.yaml": SMOKE_TEXT, "default.yaml": (paths.PARAMS / "default.yaml").read_bytes()}


# The same examples every time; each test function has a folder of its own and writes it anew.
def fuzzed(examples: int) -> settings:
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )


words = st.sampled_from(
    [
        "",
        "..",
        "../x",
        "/etc/passwd",
        "a\0b",
        "~nobody/x",
        "a\nb",
        "'",
        '"',
        "\ud800",
        "😀",
        "1e-3",
        "x" * 500,
        "__import__",
    ]
)
numbers = st.one_of(
    st.sampled_from([0, 1, -1, 2**31, 2**63, 10**400, math.nan, math.inf, -math.inf, 1e-320, 1e308]),
    st.integers(-5, 300),
    st.floats(),
)
scalars = st.one_of(st.none(), st.booleans(), numbers, words, st.text(max_size=8), st.binary(max_size=4), st.dates())
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=4), inner, max_size=3),
        st.tuples(inner, inner),
    ),
    max_leaves=5,
)
keys = st.one_of(st.sampled_from([*SMOKE, *schema.SELECTORS, "extends", "factors", "grid"]), st.text(max_size=12))


def sentence(error: ValueError) -> str:
    """The message of a refusal: of our own type, and one line that can be printed."""
    assert type(error) is ValueError, repr(error)
    message = str(error)
    assert message and "\n" not in message and len(message) < 5000
    message.encode()
    return message


def holds(found: schema.Params) -> None:
    """What every valid profile promises to the code behind it."""
    assert params.check(found.model_dump()) == found
    assert len(set(found.seeds)) == len(found.seeds) > 0 and min(found.seeds) >= 0
    assert found.hidden_size % (2 * found.heads) == 0
    assert found.curvature_blocks <= found.held_out_blocks and found.landscape_points % 2 == 1
    assert 0 <= found.real_fraction <= 1 and 0 < found.top_p <= 1 and found.temperature > 0
    assert all(math.isfinite(value) for value in found.model_dump().values() if isinstance(value, float))
    if found.profile != "smoke" and found.profile in {file.stem for file in paths.PARAMS.glob("*.yaml")}:
        return  # another profile's name over these values; a grid's has no folder
    name = params.name_of(found)
    assert (name == "smoke") == (found.profile == "smoke" and not found.variant and not params.changes(found))
    for condition in found.conditions:
        root = paths.results_root()
        folder = paths.generation_folder(paths.run_folder(name, found.model, condition, found.seeds[0]), 1)
        assert folder.resolve().is_relative_to(root) and len(folder.relative_to(root).parts) == 5


@fuzzed(300)
@given(st.dictionaries(keys, values, max_size=4), st.lists(st.sampled_from([*SMOKE]), max_size=2))
@example({"layers": 10**400}, [])
@example({"temperature": 10**400}, [])
@example({"base": "smoke"}, [])
@example({"data_path": "~nobody/x", "corpus": "tinystories"}, [])
def test_changed_profile_is_valid_or_refused_by_name(changes, dropped):
    given_values = {**SMOKE, **changes}
    for key in dropped:
        given_values.pop(key, None)
    try:
        holds(params.check(given_values))
    except ValueError as error:
        message = sentence(error)
        # It is about something that was touched: a changed key, a missing one, or one they must agree with.
        assert message.startswith("parameters: ") or "cannot name a folder" in message
        if unknown := sorted(changes.keys() - SMOKE.keys() - {"profile"} - set(schema.Params.model_fields)):
            assert "unknown parameter" in message or "and" in message, unknown


@fuzzed(60)
@given(st.dictionaries(keys.filter(str.isidentifier), values.filter(lambda v: not isinstance(v, bytes)), max_size=3))
def test_injected_parameters_are_valid_or_refused(changes):
    """What papermill writes into a notebook: strings stay strings, whatever they say."""
    try:
        holds(params.collect(notebook(TAGGED) | {"In": [TAGGED, "# Parameters"]} | changes))
    except ValueError as error:
        sentence(error)


# ---- files


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A params folder with the smoke profile, which a test writes over."""
    for name, content in DEFAULTS.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "prompts").mkdir()
    monkeypatch.setattr(paths, "PARAMS", tmp_path)
    monkeypatch.setattr(paths, "PROMPTS", tmp_path / "prompts")
    return tmp_path


def mutated(content: bytes):
    """A file with a few stretches of bytes deleted, inserted, replaced or doubled."""
    piece = st.one_of(
        st.binary(min_size=1, max_size=4),
        st.sampled_from(
            [
                *(b"\0", b"\xff", b"\n", b": ", b"- ", b"&a ", b"*a", b"<<: ", b"---\n", b"\t", b"? "),
                *(b"!!python/object/apply:os.system [x]", b"!!int x", b"!!int ''", b"!!bool x"),
                *(b"2001-13-45", b"[" * 2000, b"9" * 5000),
            ]
        ),
    )
    place = st.integers(0, len(content))
    edit = st.tuples(place, st.integers(0, 30), st.one_of(st.just(b""), piece))

    def apply(edits) -> bytes:
        changed = content
        for start, length, inserted in edits:
            changed = changed[:start] + inserted + changed[start + length :]
        return changed

    return st.lists(edit, min_size=1, max_size=3).map(apply)


@fuzzed(100)
@given(content=mutated(SMOKE_TEXT))
@example(content=SMOKE_TEXT + b"base: smoke\n")
@example(content=SMOKE_TEXT + b"extends: smoke\n")
@example(content=SMOKE_TEXT.replace(b"[1, 2]", b"&a [*a]"))
@example(content=SMOKE_TEXT.replace(b"seeds: [1, 2]", b"seeds: !!python/object/apply:os.system ['touch pwned']"))
def test_mutated_profile_is_valid_or_refused(folder, content):
    (folder / "smoke.yaml").write_bytes(content)
    try:
        holds(params.load("smoke"))
    except ValueError as error:
        sentence(error)


def test_an_alias_bomb_costs_nothing(folder):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    (folder / "smoke.yaml").write_bytes(SMOKE_TEXT.replace(b"seeds: [1, 2]", b"seeds: *a29"))
    (folder / "smoke.yaml").write_text("\n".join(lines) + "\n" + (folder / "smoke.yaml").read_text())
    with pytest.raises(ValueError, match=r"parameter 'seeds\.0'") as caught:
        params.load("smoke")
    sentence(caught.value)


def test_profiles_that_start_from_each_other_are_refused(folder):
    (folder / "smoke.yaml").write_bytes(SMOKE_TEXT + b"base: default\n")
    (folder / "default.yaml").write_bytes(DEFAULTS["default.yaml"] + b"base: smoke\n")
    for profile in ("smoke", "default"):
        with pytest.raises(ValueError, match=r"base: \w+ starts from '\w+' itself"):
            params.load(profile)


# ---- grids


def paths_into(tree, prefix=()):
    """All places of a tree of dictionaries."""
    for key, value in tree.items():
        yield (*prefix, key)
        if isinstance(value, dict):
            yield from paths_into(value, (*prefix, key))


SMALL_GRID = {
    "extends": "smoke",
    "scale": 2,
    "factors": {name: copy.deepcopy(GRID["factors"][name]) for name in ("smoke", "dropout")},
}


@fuzzed(40)
@given(place=st.sampled_from(list(paths_into(SMALL_GRID))), value=values, drop=st.booleans())
@example(place=("extends",), value="ablations.dropout.0", drop=False)
@example(place=("factors", "dropout", "extends"), value="ablations.dropout.0", drop=False)
@example(place=("factors",), value={"../x": GRID["factors"]["dropout"]}, drop=False)
@example(place=("factors",), value={"x; touch pwned": GRID["factors"]["dropout"]}, drop=False)
def test_mutated_grid_is_read_or_refused(folder, place, value, drop):
    grid = copy.deepcopy(SMALL_GRID)
    at = grid
    for key in place[:-1]:
        at = at[key]
    if drop:
        del at[place[-1]]
    else:
        at[place[-1]] = value
    try:
        (folder / "ablations.yaml").write_text(yaml.safe_dump(grid))
    except (yaml.YAMLError, ValueError):  # what YAML cannot hold
        return
    try:
        params.grid_files("ablations")
        for factor in params.studied_factors("ablations"):
            paths.path_name(factor)  # a folder, and a word of a command
            for level in factors.read(factor, "ablations").levels.values():
                holds(level)
    except ValueError as error:
        sentence(error)


@pytest.mark.parametrize(
    "text", ["grid: ablations", "grid: 3", "grid: smoke", "grid: ablations\nfactors: 3", "factors: 3"]
)
def test_grid_of_a_grid_that_is_none_is_refused(folder, text):
    (folder / "ablations.yaml").write_text(text + "\n")
    with pytest.raises(ValueError) as caught:
        params.read_grid("ablations")
    sentence(caught.value)


# ---- prompts

PROMPTS = [{"id": f"p{n}", "bucket": "neutral", "text": f"Tom ran {n}"} for n in range(4)]


@fuzzed(100)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(PROMPTS).map(lambda prompt: json.dumps(prompt).encode()),
            st.dictionaries(st.sampled_from([*PROMPTS[0], "response"]), scalars, max_size=4).map(
                lambda prompt: json.dumps(prompt, default=str).encode()
            ),
            mutated(json.dumps(PROMPTS[0]).encode()),
        ),
        max_size=4,
    )
)  # fmt: skip
@example([json.dumps(PROMPTS[0]).encode()] * 2)
@example([b"\xff\xfe"])
@example([b"[" * 100_000])
def test_prompt_bank_is_whole_or_the_line_is_named(folder, lines):
    (folder / "prompts" / "own.jsonl").write_bytes(b"\n".join(lines))
    try:
        found = prompts.prompt_bank("own")
        assert found and len({prompt["id"] for prompt in found}) == len(found)
        assert all(set(prompt) == set(prompts.PROMPT) for prompt in found)
        assert all(isinstance(value, str) and value.strip() for prompt in found for value in prompt.values())
    except ValueError as error:
        message = sentence(error)
        assert str(folder / "prompts" / "own.jsonl") in message
        assert "is empty" in message or ", line " in message


def test_id_that_stands_twice_is_named_with_its_line(folder):
    (folder / "prompts" / "own.jsonl").write_text("\n".join(map(json.dumps, [*PROMPTS, PROMPTS[1]])) + "\n")
    with pytest.raises(ValueError, match=r"own\.jsonl, line 5: the id 'p1' stands twice\."):
        prompts.prompt_bank("own")


def test_text_with_unicode_line_ends_is_one_prompt_and_one_response(folder):
    """U+2028, U+0085 and the like end no line of JSON, though str.splitlines takes them for ends."""
    text = "one\u2028two\u2029three\x85four\x1cfive"
    (folder / "prompts" / "own.jsonl").write_text(json.dumps({**PROMPTS[0], "text": text}, ensure_ascii=False))
    assert prompts.prompt_bank("own")[0]["text"] == text
    measure._write_lines(folder / "responses.jsonl", [{"response": text}, {"response": "b"}])
    assert [line["response"] for line in measure.read_lines(folder / "responses.jsonl")] == [text, "b"]


# ---- text

STORY = b"Tom ran home.\n\nMia sat down.\n\nBen ate a pie.\n"


@fuzzed(100)
@given(st.one_of(mutated(STORY), st.binary(max_size=40), st.text(max_size=40).map(lambda text: text.encode("utf-16"))))
@example(b"")
@example(b"no newline")
@example(b"\xef\xbb\xbf")
def test_text_file_is_read_whole_or_refused_with_its_place(folder, content):
    path = folder / "text.txt"
    path.write_bytes(content)
    try:
        documents = corpora.read_documents(path)
        text = content.decode("utf-8-sig")  # else it should have been refused
        assert documents and "\0" not in text
        assert "".join("".join(documents).split()) == "".join(text.replace("<|endoftext|>", " ").split())
    except ValueError as error:
        message = sentence(error)
        assert message.startswith(f"data file {path} ")
        assert any(part in message for part in ("(byte ", "a NUL in line ", "is empty"))


def test_nul_is_named_with_its_line(folder):
    (folder / "text.txt").write_bytes(b"a\nb\nc\0d\n")
    with pytest.raises(ValueError, match=r"text\.txt holds a NUL in line 3, as no text does: convert it first\."):
        corpora.read_documents(folder / "text.txt")


def test_one_enormous_line_is_one_document(folder):
    (folder / "text.txt").write_text("Tom ran home. " * 100_000)  # 1.4 MB
    (document,) = corpora.read_documents(folder / "text.txt")
    assert len(document) == 100_000 * 14 - 1
    settings = {"corpus": "tinystories", "data_path": str(folder / "text.txt")}
    with pytest.raises(ValueError, match=r"has 1 documents, too few .*separate .*or set held_out_path"):
        corpora.load_corpus(params.load("smoke", **settings))
    (folder / "held.txt").write_text("Mia sat down. " * 1000)
    real = corpora.RealText(params.load("smoke", **settings, held_out_path=str(folder / "held.txt")))
    assert len(real.slice(1, 0)) == params.load("smoke").blocks_per_generation


# ---- curvature


@functools.cache
def small_model(name: str):
    return spectra.foreign(name) if name in spectra.FOREIGN else spectra.tiny(name, torch.float32)


tokens = st.one_of(
    st.lists(st.lists(st.integers(-1, 14), min_size=0, max_size=10), max_size=3),
    st.tuples(st.integers(0, 2), st.integers(0, 10)).map(lambda shape: torch.zeros(shape, dtype=torch.long)),
    st.lists(st.integers(0, 12), min_size=6, max_size=6).map(lambda block: torch.tensor([block, block[::-1]])),
    values,
)
entries = st.sampled_from([0.0, 1.0, -3.0, 1e30, math.nan, math.inf])


@fuzzed(40)
@given(
    name=st.sampled_from([*spectra.FOREIGN, *spectra.ARCHITECTURES]),
    kind=st.sampled_from(["hessian", "gauss_newton"]),
    blocks=tokens,
    entry=st.one_of(st.none(), entries),
    place=st.integers(0, 10**6),
    extra=st.integers(-1, 1),
)
@example(name="rwkv", kind="hessian", blocks=torch.ones(1, 6, dtype=torch.long), entry=None, place=0, extra=0)
@example(name="mamba", kind="hessian", blocks=torch.ones(1, 6, dtype=torch.long), entry=math.nan, place=9, extra=0)
def test_an_operator_of_any_model_multiplies_or_is_refused(name, kind, blocks, entry, place, extra):
    model = small_model(name)
    parameter = list(model.parameters())[place % len(list(model.parameters()))]
    before = parameter.detach().clone()
    with torch.no_grad():
        if entry is not None:
            parameter.view(-1)[place % parameter.numel()] = entry
    try:
        operator = curvature.hessian_operator(model, blocks, kind=kind)
        vector = torch.ones(operator.n + extra)
        product = operator @ vector
        assert extra == 0 and product.shape == (operator.n,)
        assert isinstance(product, torch.Tensor) and product.isfinite().all()
        assert (operator @ torch.full((operator.n,), math.nan)).isnan().any()  # what is no number stays none
    except ValueError as error:
        message = sentence(error)
        if entry is not None and not math.isfinite(entry) and extra == 0 and "blocks" not in message:
            assert message.startswith("weights of ") or "cannot be measured here" in message
    finally:
        with torch.no_grad():
            parameter.copy_(before)


@fuzzed(100)
@given(
    eigenvalues=st.lists(st.sampled_from([0.0, 1.0, 1.0, 2.0, -1.0, -5.0, 1e-6, 40.0, 1e4]), min_size=1, max_size=14),
    steps=st.integers(0, 6),
    probes=st.integers(0, 3),
    seed=st.integers(0, 9),
)
def test_any_spectrum_has_a_signature_or_a_reason(eigenvalues, steps, probes, seed):
    try:
        found = spectra.signature_of(spectra.Rotated(np.array(eigenvalues), seed), steps, probes, seed)
    except ValueError as error:
        sentence(error)
        assert steps < 1 or probes < 2 or not any(eigenvalues)
        return
    assert len(found.outliers) <= len(eigenvalues) // 2
    undefined = math.isnan(found.log_spectral_ratio.value)
    assert undefined == bool(found.notes)
    for name, value in curvature.as_result(found).items():
        if name.endswith("_interval"):
            assert math.isnan(value[0]) or value[0] < value[1]


# ---- tables of runs


@st.composite
def tables(draw):
    """Tables of one to four seeds of conditions over any generations; values vary, count, tie, or are missing."""
    names = ["recursive", "fresh", "static", "recursive_carry", "fresh_carry"]
    conditions = draw(st.lists(st.sampled_from(names), min_size=1, max_size=4, unique=True))
    seeds, generations = draw(st.integers(1, 4)), draw(st.sets(st.integers(0, 7), min_size=1, max_size=5))
    rng, kind = np.random.default_rng(draw(st.integers(0, 99))), draw(st.sampled_from([*KINDS]))
    rows = [
        (condition, seed, generation, KINDS[kind](rng, generation), rng.normal())
        for condition in conditions
        for seed in range(seeds)
        for generation in sorted(generations)
    ]
    table = pd.DataFrame(rows, columns=["condition", "seed", "generation", "held_out_perplexity", "lambda_max"])
    if draw(st.integers(0, 4)) == 0:
        table = table.drop(index=draw(st.integers(0, len(table) - 1)))
    if len(table) and draw(st.integers(0, 9)) == 0:
        table.loc[table.index[0], "held_out_perplexity"] = draw(st.sampled_from([math.nan, math.inf]))
    return table.assign(model="llama")


KINDS = {
    "normal": lambda rng, generation: rng.normal(),
    "counts": lambda rng, generation: float(rng.poisson(1)),
    "constant": lambda rng, generation: 3.0,
    "exact": lambda rng, generation: float(generation),
    "huge": lambda rng, generation: 1e9 + 1e-3 * rng.normal(),
}
COVERAGE = pd.DataFrame(
    {"correction": ["none"], "n_observed": 40, "dimensions": 8, "population": "gaussian", "m": 8}
    | {"coverage": 0.5, "coverage_low": 0.4, "coverage_high": 0.6}
)
PERPLEXITY = "held_out_perplexity"


def alarms(table: pd.DataFrame) -> pd.DataFrame:
    return early_warning.alarms(table, [PERPLEXITY, "lambda_max"])


ANALYSES = [
    lambda table: anova.repeated_measures_anova(table, PERPLEXITY, 9),
    lambda table: statistics.paired_tests(table, PERPLEXITY),
    lambda table: statistics.equivalence(table, PERPLEXITY, 1.0),
    lambda table: statistics.effect_sizes(table, PERPLEXITY),
    lambda table: forecast.forecasts(table, "lambda_max"),
    lambda table: slopes.slope_tests(table, PERPLEXITY),
    lambda table: slopes.mixed_model(table, PERPLEXITY),
    lambda table: early_warning.icarus_counts(table, PERPLEXITY),
    lambda table: detection.separation(table, "lambda_max"),
    lambda table: correlation.lagged_spearman(table, ["lambda_max"], [PERPLEXITY]),
    lambda table: rescue.reversibility(table, table[table["generation"] > 0][[*statistics.CELL, "lambda_max"]]),
    lambda table: claims.verdicts(claims.Evidence(table, alarms(table), COVERAGE)),
    lambda table: findings.values(report.analyse(table)),
]


@fuzzed(15)
@given(tables())
def test_any_table_of_runs_is_analysed_or_refused_in_one_sentence(table):
    for analyse in ANALYSES:
        try:
            analyse(table)
        except ValueError as error:
            sentence(error)


@pytest.mark.parametrize("generations", [(0, 1), (0, 1, 2), (0, 1, 2, 3), (0, 2, 5)])
def test_two_seeds_over_few_generations_are_analysed_throughout(generations):
    """What `smoke` with three generations gives: no analysis may end a notebook after all the runs."""
    rng = np.random.default_rng(0)
    for conditions in (["recursive", "fresh"], ["recursive", "fresh", "static"]):
        rows = [(c, s, g, *rng.normal(20, 1, 2)) for c in conditions for s in (1, 2) for g in generations]
        names = ["condition", "seed", "generation", PERPLEXITY, "lambda_max"]
        for analyse in ANALYSES:
            analyse(pd.DataFrame(rows, columns=names).assign(model="llama"))


@fuzzed(100)
@given(
    st.lists(st.one_of(st.text(max_size=12), scalars, st.dictionaries(st.just("text"), scalars)), max_size=4), st.data()
)
def test_jsonl_is_read_whole_or_the_line_is_named(folder, documents, data):
    lines = [json.dumps(document, default=str).encode() for document in documents]
    if lines and data.draw(st.booleans()):
        lines[-1] = data.draw(mutated(lines[-1]))
    path = folder / "text.jsonl"
    path.write_bytes(b"\n".join(lines))
    try:
        found = corpora.read_documents(path)
        assert found and all(isinstance(each, str) and each.strip() == each != "" for each in found)
        assert len(found) <= len(path.read_bytes().split(b"\n"))
    except ValueError as error:
        assert sentence(error).startswith(f"data file {path}")


# ---- words

# Letters with what may follow them, scripts with and without spaces, and marks that end a sentence.
SCRIPTS = (
    "abz ’'ʼ-_.!? 3½",
    "äñéßŒ\u0301\u0308\u00ad",
    "καλημέρα;ςΣ",
    "привет ъй",
    "שלום״׳\u05b8",
    "مرحبا؟\u064e\u0651\u200f",
    "नमस्ते।क्ष\u200d\u200c",
    "தமிழ்",
    "ไทยน้ำ",
    "ភាសា",
    "မြန်မာ။",
    "汉字。！？々〇",
    "ひらがなー、",
    "カタカナ゛ﾊﾟ",
    "한국어 \u1112\u1161\u11ab",
    "😀👩\u200d👧🏽",
)
any_script = st.lists(st.one_of(*(st.text(characters, max_size=6) for characters in SCRIPTS), st.text(max_size=3)))
texts = any_script.map("".join)


@fuzzed(100)
@given(texts)
@example("ﾊﾞ")
@example("\u0301")
@example("İI\u0307J\u030c")
def test_words_hold_every_letter_in_any_script_and_form(text):
    found = text_metrics.words(text)
    for form in ("NFC", "NFD"):
        assert text_metrics.words(unicodedata.normalize(form, text)) == found
        assert text_metrics.sentences(unicodedata.normalize(form, text)) == text_metrics.sentences(text)
    # Every letter and number stands in a word, in its order, and no word is without one.
    known = unicodedata.normalize("NFC", text).translate(text_metrics.APOSTROPHES)
    known = unicodedata.normalize("NFC", text_metrics.FORMAT.sub("", known).lower())
    letters = regex.compile(r"[\p{L}\p{N}]")
    assert letters.findall("".join(found)) == letters.findall(known)
    assert all(letters.search(word) or regex.search(r"\p{Alphabetic}|\p{WB=Katakana}", word) for word in found)
    assert not any(regex.search(r"\s|’", word) for word in found)
    # Sentences lose nothing but space and what has no word.
    assert [word for piece in text_metrics.sentences(text) for word in text_metrics.words(piece)] == found


@fuzzed(70)
@given(st.lists(texts, max_size=4), st.lists(texts, max_size=4))
def test_metrics_of_any_text_lie_in_their_range_or_are_nan(some, others):
    pairs = min(len(some), len(others))
    found = {
        **text_metrics.surface_metrics(some),
        **storyworld.tail_metrics(some),
        "hhi": text_metrics.hashed_ngram_hhi(some),
        "rouge_l": text_metrics.rouge_l(some[:pairs], others[:pairs]),
        "bleu": text_metrics.bleu(some[:pairs], others[:pairs]),
    }
    shares = {"repetition_4", "type_token_ratio", "hhi", "rouge_l", *(f"distinct_{n}" for n in range(1, 5))}
    assert shares <= found.keys()
    highest = {"self_bleu": 100, "bleu": 100} | dict.fromkeys(shares, 1)
    for name, estimate in found.items():
        assert math.isnan(estimate.value) or -1e-9 <= estimate.value <= highest.get(name, math.inf) + 1e-9, name


# ---- weights that are no numbers


@fuzzed(30)
@given(st.data(), st.sampled_from([math.nan, math.inf, -math.inf]))
def test_a_weight_that_is_not_finite_is_named_or_changes_nothing(tiny_model, folder, data, value):
    """A NaN goes through; an infinity may pass a gate or an embedding that is not read."""
    model = tiny_model(data.draw(st.sampled_from(["llama", "qwen2", "opt", "gpt2"])))
    name, parameter = data.draw(st.sampled_from(list(model.named_parameters())))
    parameter.data.view(-1)[data.draw(st.integers(0, parameter.numel() - 1))] = value
    blocks = torch.arange(2, 34).view(4, 8)
    recipe = train.Recipe(1, 2, 1e-2, 0.0, 0.0, "constant")
    assert build.not_finite_weights(model) == name
    with pytest.raises(ValueError, match="are not finite before it begins"):
        train.train(model, blocks, recipe, seed_parts=(1,), state=folder / "s", state_steps=9, identity="")
    for use in (
        lambda: generate.sample(
            model, blocks[:, :3].tolist(), [1, 2, 3, 4], 3, temperature=1.0, top_k=0, top_p=0.9, batch_size=4
        ),
        lambda: train.perplexity(model, blocks, 4)["held_out_loss_nats"],
        lambda: precursors.anchor_statistics(model, blocks, 4)[0],
    ):
        try:
            assert np.isfinite(use()).all()
        except ValueError as error:
            assert f": the weights {name} are not finite: take an earlier checkpoint." in sentence(error)


# ---- papermill


@fuzzed(100)
@given(
    st.one_of(
        st.text(), words, st.sampled_from(["'; import os; os.system('touch pwned') #", '"""', "\\", "{x}", "$(x)"])
    )
)
def test_text_that_papermill_injects_arrives_as_that_text(text):
    if any(0xD800 <= ord(character) < 0xE000 for character in text):  # no source file can hold it
        return
    namespace = {"__builtins__": {}}
    exec(injected(data_path=text, nested={"a": [text]}), namespace)
    assert namespace["data_path"] == text and namespace["nested"] == {"a": [text]}


# ---- embeddings


def rows_of(seed: int, count: int, m: int, groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows (count, m) that depend on each other within `groups` groups, and the groups' numbers."""
    rng = np.random.default_rng(seed)
    place = rng.integers(groups, size=count)
    rows = rng.normal(size=(groups, m))[place] + rng.uniform(0, 1) * rng.normal(size=(count, m))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True), place


def finite_or_refused(estimate) -> None:
    """A finite estimate with an interval of some width around it, or one sentence."""
    try:
        found = estimate()
    except ValueError as error:
        assert "\n" not in str(error) and 20 < len(str(error)) < 500
        assert type(error) in (ValueError, sigma.SingularGram)
    else:
        assert np.isfinite(found).all() and found.low < found.value < found.high
        assert found.high - found.low > 1e-6


@fuzzed(40)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(0, 60),
    m=st.integers(2, 12),
    groups=st.integers(1, 30),
    spoil=st.sampled_from(["nothing", "nan", "inf", "dead", "zero rows", "one row", "huge", "tiny"]),
    delta=st.sampled_from([1e-9, 1e-3, 1.0, 1e6]),
)
@example(seed=0, count=0, m=3, groups=1, spoil="nothing", delta=1e-3)
@example(seed=0, count=12, m=12, groups=30, spoil="nothing", delta=1e-3)
@example(seed=0, count=60, m=4, groups=2, spoil="nothing", delta=1e-3)
@example(seed=0, count=60, m=4, groups=30, spoil="dead", delta=1e-3)
def test_embeddings_have_an_estimate_with_an_interval_or_one_sentence(seed, count, m, groups, spoil, delta):
    """Dependent rows, too few of them, NaN, infinity, dead coordinates and scales: nothing else comes out."""
    rows, place = rows_of(seed, count, m, groups)
    if count:
        match spoil:
            case "nan" | "inf":
                rows[seed % count, seed % m] = float(spoil)
            case "dead":
                rows[:, seed % m] = 1e-9 * np.random.default_rng(seed).normal(size=count)
            case "zero rows":
                rows[: count // 2] = 0
            case "one row":
                rows[1:] = rows[0]
            case "huge" | "tiny":
                rows *= 1e100 if spoil == "huge" else 1e-100
    said = sigma.health_checks(rows, 1.0, delta, place)
    assert all(message[-1] == "." and "\n" not in message for message in said)
    if spoil in ("nan", "inf", "dead", "zero rows", "huge") and count > m:
        assert said
    finite_or_refused(lambda: sigma.grouped_logdet_estimate(rows, place, 1000))
    for correction in ("none", "wishart", "leverage"):
        finite_or_refused(
            lambda correction=correction: sigma.logdet_estimate(
                rows.T @ rows, count, 1000, correction, leverages=sigma.leverages(rows)
            )
        )
    first = sigma.Observed(rows, place, np.arange(count))
    try:
        found = sigma.banded_drifts(first, first, sigma.Budget(10, 1.0, delta))
    except ValueError as error:
        assert "\n" not in str(error) and (spoil in ("nan", "inf") or not count)
    else:
        assert {name for name, drift in found.items() if drift["drift"] != 0} <= {"logdet"}  # 0, or NaN
