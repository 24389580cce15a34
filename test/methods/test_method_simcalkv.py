"""SimCalKV: selection, merging, calibrations and merging again while decoding."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from slot_rows import DIM, GROUP, HEADS, SCALING, after_prefill, random_tensors
from tiny_models import tiny_model

from catekv import CateKVModel, kernels, methods
from catekv.errors import UserError
from catekv.methods import Merged, ModelShape
from catekv.methods.formulas import merging
from catekv.methods.formulas.merging import nearest_kept, removed_count
from catekv.methods.h2o import received_attention
from catekv.methods.simcalkv.merge import (
    MergeRule,
    key_constant_shift,
    merge_row,
    normalised_by_queries,
    removal_order,
)

EXAMPLE = {
    "keys": [[2, 0], [1.5, 0.5], [0, 2], [0.5, 1.5], [1, 1]],
    "values": [[1, 0], [0, 1], [2, 2], [-1, 1], [0.5, 0.5]],
    "attention": [
        [1, 0, 0, 0, 0],
        [0.6, 0.4, 0, 0, 0],
        [0.5, 0.1, 0.4, 0, 0],
        [0.5, 0.1, 0.3, 0.1, 0],
        [0.4, 0.1, 0.2, 0.1, 0.2],
    ],
    "query": [1, 0.5],
    "ratio": 0.4,
}


def column_sums(attention: list) -> torch.Tensor:
    """[1, query_heads, tokens] of attention maps [query_heads, tokens, tokens] or one map."""
    maps = torch.tensor(attention, dtype=torch.float32)
    return (maps if maps.ndim == 3 else maps[None]).sum(dim=1)[None]


def select(given: dict, **options) -> methods.Selection:
    """The method on one head whose attention map is given."""
    keys, values = (torch.tensor(given[name])[None, None].float() for name in ("keys", "values"))
    query = torch.tensor(given["query"])[None, None, None].float()
    method = methods.create("simcalkv", ratio=given["ratio"], **options)
    return method.select(query, keys, values, column_sums=column_sums(given["attention"]))


def attend(query: list, keys: torch.Tensor, values: torch.Tensor, bias=None) -> torch.Tensor:
    query = torch.tensor(query).float()
    logits = keys @ query / math.sqrt(len(query))
    return (logits if bias is None else logits + bias).softmax(dim=0) @ values


@pytest.mark.parametrize(
    ("tokens", "ratio", "removed"),
    [
        (10, 0.4, 4),
        (10, 0.04, 1),
        (100, 0.29, 29),
        (10, 0.0, 0),
        (10, 0.99, 9),
        (10, 1.0, 10),
        (1, 0.5, 1),
        (2, 0.9, 1),
    ],
)
def test_removed_counts(tokens: int, ratio: float, removed: int) -> None:
    assert removed_count(tokens, ratio) == removed


def test_golden_removed_counts(golden) -> None:
    for case in golden("simcalkv", "evicted_count"):
        tokens, ratio = case["inputs"]["tokens"], case["inputs"]["ratio"]
        removed = removed_count(tokens, ratio)
        assert (removed, tokens - removed) == (
            case["expected"]["evicted"],
            case["expected"]["kept"],
        )
        # what the release removed, for which there is no option
        assert max(1, int(tokens * ratio)) == case["expected"]["evicted_float_truncation"]


def test_golden_split(golden) -> None:
    for case in golden("simcalkv", "evict_split"):
        sums = received_attention(column_sums(case["inputs"]["attention"]), 1)[0, 0]
        torch.testing.assert_close(sums, torch.tensor(case["expected"]["column_sums"]))
        count = removed_count(len(sums), case["inputs"]["ratio"])
        removed = sorted(removal_order(sums, count).tolist())
        assert removed == case["expected"]["evicted"]
        assert sorted(set(range(len(sums))) - set(removed)) == case["expected"]["kept"]


def test_golden_scores_of_a_group(golden) -> None:
    for case in golden("simcalkv", "gqa_column_sums"):
        sums = column_sums(case["inputs"]["attention"])
        found = received_attention(sums, sums.shape[1] // case["inputs"]["group"])[0]
        torch.testing.assert_close(found, torch.tensor(case["expected"]["scores"]))


def test_golden_merge(golden) -> None:
    for case in golden("simcalkv", "merge"):
        given, expected = case["inputs"], case["expected"]
        options = {
            "threshold": given["theta"],
            "calibration": given["calibration"],
            "key_mean": given["key_mean"],
        }
        found = select(given, **options)
        for name in ("keys", "values"):
            torch.testing.assert_close(
                getattr(found, name)[0][0], torch.tensor(expected[name]), rtol=1e-5, atol=1e-5
            )
        bias = torch.zeros(3) if found.bias is None else found.bias[0][0]
        torch.testing.assert_close(bias, torch.tensor(expected["logit_bias"]))
        keys, values = (torch.tensor(given[name]).float() for name in ("keys", "values"))
        removed = torch.tensor(expected["evicted"])
        logits = keys @ torch.tensor(given["query"]).float() / math.sqrt(2)
        row = merge_row(keys, values, logits, removed, MergeRule(**options))
        kept = torch.tensor(expected["kept"])
        assert kept[row.target].tolist() == expected["target_token"]
        torch.testing.assert_close(row.similarity, torch.tensor(expected["similarity"]))
        assert row.merged.tolist() == expected["merged"]


def test_worked_example_of_the_merge() -> None:
    found = select(EXAMPLE)
    expected_keys = [[2, 0], [1.943147, 1.443147], [0.943147, 2.443147]]
    torch.testing.assert_close(found.keys[0][0], torch.tensor(expected_keys), rtol=0, atol=1e-5)
    expected_values = [[1, 0], [0.22796, 0.77204], [0.367762, 1.455921]]
    torch.testing.assert_close(found.values[0][0], torch.tensor(expected_values), rtol=0, atol=1e-5)
    assert found.bias is None
    biased = select(EXAMPLE, calibration="logit")
    assert biased.bias is not None
    torch.testing.assert_close(biased.bias[0][0], torch.tensor([0.0, math.log(2), math.log(2)]))


def errors(given: dict) -> dict[str, tuple[torch.Tensor, float]]:
    keys, values = (torch.tensor(given[name]).float() for name in ("keys", "values"))
    full = attend(given["query"], keys, values)
    found = {"full": (full, 0.0)}
    evicted = select(given, threshold=1.0)  # nothing exceeds a cosine of 1
    options = {"evict": evicted} | {
        name: select(given, calibration=name) for name in ("none", "key_const", "logit")
    }
    for name, row in options.items():
        bias = None if row.bias is None else row.bias[0][0]
        output = attend(given["query"], row.keys[0][0], row.values[0][0], bias)
        found[name] = output, float((output - full).norm())
    return found


def test_worked_example_of_the_errors() -> None:
    expected = {"evict": 0.369671, "none": 0.200672, "key_const": 0.009626, "logit": 0.000994}
    found = errors(EXAMPLE)
    for name, error in expected.items():
        assert found[name][1] == pytest.approx(error, abs=1e-5)


def test_golden_errors(golden) -> None:
    for case in golden("simcalkv", "attention_error"):
        found, expected = errors(case["inputs"]), case["expected"]
        torch.testing.assert_close(
            found["full"][0], torch.tensor(expected.pop("full")), rtol=1e-5, atol=1e-5
        )
        for name, one in expected.items():
            torch.testing.assert_close(
                found[name][0], torch.tensor(one["output"]), rtol=1e-5, atol=1e-5
            )
            assert found[name][1] == pytest.approx(one["error"], abs=1e-5)


def merge_into_one(given: dict, **options) -> Merged:
    keys = torch.tensor([given["kept_key"], *given["evicted_keys"]]).float()
    values = torch.tensor([given["kept_value"], *given["evicted_values"]]).float()
    logits = keys @ torch.tensor(given["query"]).float() / math.sqrt(keys.shape[1])
    removed = torch.arange(1, len(keys))
    row = merge_row(keys, values, logits, removed, MergeRule(-1.0, **options))
    return Merged(row.keys, row.values, row.log_counts)


SEQUENCE = {
    "query": [0.0, 0.0],
    "kept_key": [2, 2],
    "kept_value": [1, 1],
    "evicted_keys": [[4, 0], [0, 4]],
    "evicted_values": [[0, 0], [3, 0]],
}


def test_worked_example_of_sequential_merging() -> None:
    found = merge_into_one(SEQUENCE, merge_order="sequential")
    torch.testing.assert_close(found.keys, torch.tensor([[2.539721, 3.539721]]), rtol=0, atol=1e-5)
    torch.testing.assert_close(found.values, torch.tensor([[1.75, 0.25]]))
    batched = merge_into_one(SEQUENCE)
    torch.testing.assert_close(batched.keys, torch.tensor([[2.693147] * 2]), rtol=0, atol=1e-5)


def test_sequential_merging_cuts_logits_off() -> None:
    keys, values = torch.tensor([[2.0, 0.0], [3.0, 1.0]]), torch.eye(2)
    logits = keys @ torch.tensor([40.0, 0.0])
    for sign in (1, -1):
        row = merge_row(
            keys, values, sign * logits, torch.tensor([1]), MergeRule(-1, merge_order="sequential")
        )
        torch.testing.assert_close(row.values, torch.tensor([[0.5, 0.5]]))
    batched = merge_row(keys, values, logits, torch.tensor([1]), MergeRule(-1))
    assert float(batched.values[0, 1]) > 0.999


@pytest.mark.parametrize("name", ["simcalkv", "simcalkv_keepkv", "simcalkv_cam"])
def test_a_removed_share_of_one_leaves_nothing_to_which_new_tokens_are_appended(name: str) -> None:
    method = methods.create(name, ratio=1.0)
    assert method.budget_table(9, ModelShape(2, 4, 2, 4)).tolist() == [[0, 0], [0, 0]]
    queries, keys, values = random_tensors(2, 9)
    for tokens in (1, 9):
        part = (queries[:, :, :tokens], keys[:, :, :tokens], values[:, :, :tokens])
        assert method.select(*part).budgets.tolist() == [[0, 0]] * 2
    model = CateKVModel(tiny_model("llama"))
    ids = [5, 7, 11, 13, 17]
    context = model.prefill(ids, method=method)
    found = model.generate_ids([], context, 6, [])
    whole = model.generate_ids([], model.prefill(ids, method="full"), 6, [])
    assert (found.tokens[0], len(found.tokens)) == (whole.tokens[0], 6)


def test_golden_sequential_merge(golden) -> None:
    for case in golden("simcalkv", "sequential_merge"):
        found = merge_into_one(case["inputs"], merge_order="sequential")
        expected = case["expected"]
        torch.testing.assert_close(found.keys[0], torch.tensor(expected["sequential_key"]))
        torch.testing.assert_close(found.values[0], torch.tensor(expected["sequential_value"]))
        batched = merge_into_one(case["inputs"])
        torch.testing.assert_close(batched.keys[0], torch.tensor(expected["batched_key"]))


def test_sequential_merging_follows_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 40, 4, generator=generator)
    logits = torch.randn(40, generator=generator)
    removed = torch.randperm(40, generator=generator)[:31]
    rule = MergeRule(0.1, merge_order="sequential")
    row = merge_row(keys, values, logits, removed, rule)
    kept = [token for token in range(40) if token not in removed.tolist()]
    for index, token in enumerate(kept):
        key, value, times = keys[token].clone(), values[token].clone(), 0
        for order, entry in enumerate(removed.tolist()):
            if int(row.target[order]) == index and float(row.similarity[order]) > 0.1:
                key = 0.5 * (keys[entry] + key) + math.log(2)
                weight, own = logits[entry].exp(), logits[token].exp()
                value = (weight * values[entry] + own * value) / (weight + own)
                times += 1
        torch.testing.assert_close(row.keys[index], key, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(row.values[index], value, rtol=1e-5, atol=1e-5)
        assert float(row.log_counts[index]) == pytest.approx(math.log(1 + times), abs=1e-6)
    assert bool(row.merged.any())
    assert not bool(row.merged.all())


def test_golden_logit_calibration(golden) -> None:
    for case in golden("simcalkv", "logit_calibration"):
        logits, expected = torch.tensor(case["inputs"]["logits"]), case["expected"]
        # keys whose products with a query of ones are the logits
        rule = MergeRule(-1.0, "logit", "uniform")
        removed = torch.arange(1, len(logits))
        row = merge_row(logits[:, None], logits[:, None], logits, removed, rule)
        mean, bias = float(row.keys), float(row.log_counts)
        true = float(logits.exp().sum())
        assert true == pytest.approx(expected["true_mass"], rel=1e-5)
        assert math.exp(mean) == pytest.approx(expected["mean_mass"], rel=1e-5)
        assert math.exp(mean + bias) == pytest.approx(expected["calibrated_mass"], rel=1e-5)
        assert math.exp(mean + bias) / true == pytest.approx(expected["ratio"], rel=1e-5)
        assert 2 * math.exp(mean) == pytest.approx(expected["ln2_mass"], rel=1e-5)


def test_three_equal_tokens_need_the_log_of_three() -> None:
    keys = torch.ones(3, 1)
    row = merge_row(keys, keys, keys[:, 0], torch.tensor([0, 1]), MergeRule(0, "logit", "uniform"))
    assert float((row.keys[0, 0] + row.log_counts[0]).exp()) == pytest.approx(8.154845)


def test_golden_key_constant(golden) -> None:
    for case in golden("simcalkv", "key_const_shift"):
        given, expected = case["inputs"], case["expected"]
        shift = key_constant_shift(given["sum_q"], given["head_dim"])
        assert shift == pytest.approx(expected["logit_shift"], rel=1e-5)
        # the constant that would add ln 2 to the logit, where ln 2 itself adds the shift
        needed = math.log(2) ** 2 / shift
        assert needed == pytest.approx(expected["beta_needed"], rel=1e-5)


def test_key_constant_of_a_query_of_ones() -> None:
    assert key_constant_shift(math.sqrt(128), 128) == pytest.approx(math.log(2))
    assert key_constant_shift(128, 128) == pytest.approx(7.842065)


def compressed_mib(layers, kv_heads, head_dim, bytes, prompt, new, ratio) -> tuple[int, float]:
    method = methods.create("simcalkv", ratio=ratio)
    table = method.budget_table(prompt, ModelShape(layers, kv_heads * 4, kv_heads, head_dim))
    entries = int((table + new).sum())
    return int(table[0, 0]) + new, entries * 2 * head_dim * bytes / 2**20


def test_worked_example_of_the_bytes() -> None:
    assert compressed_mib(32, 8, 128, 2, 4096, 512, 0.4) == (2970, 371.25)


def test_golden_bytes(golden) -> None:
    for case in golden("simcalkv", "kv_bytes"):
        given, expected = case["inputs"], case["expected"]
        assert compressed_mib(**given) == (
            expected["compressed_tokens"],
            expected["compressed_mib"],
        )
        full = compressed_mib(**{**given, "ratio": 0.0})
        assert full == (expected["full_tokens"], expected["full_mib"])


def test_equal_tokens_merge_without_any_change_of_the_output() -> None:
    queries, keys, values = random_tensors(1, 12)
    keys, values = (x.repeat_interleave(3, dim=2) for x in (keys, values))
    queries = queries.repeat_interleave(3, dim=2)
    # one of each three tokens attracts the attention
    sums = torch.tensor([0.0, 0.0, 1.0]).repeat(1, HEADS * GROUP, 12)
    method = methods.create("simcalkv", preset="recommended", ratio=2 / 3, threshold=0.99)
    found = method.select(queries, keys, values, scaling=SCALING, column_sums=sums)
    assert found.budgets.tolist() == [[12, 12]]
    prefix = found.packed(keys, values)
    asked, own_keys, own_values = random_tensors(1, 1, seed=5)
    merged = kernels.ragged_decode(asked, prefix, own_keys, own_values, SCALING)
    full = torch.nn.functional.scaled_dot_product_attention(
        asked,
        torch.cat([keys, own_keys], 2),
        torch.cat([values, own_values], 2),
        scale=SCALING,
        enable_gqa=True,
    )
    torch.testing.assert_close(merged, full, rtol=1e-5, atol=1e-6)


def test_nothing_removed_is_the_whole_prompt() -> None:
    queries, keys, values = random_tensors(1, 20)
    found = methods.create("simcalkv", ratio=0.0).select(queries, keys, values)
    for head in range(HEADS):
        assert torch.equal(found.keys[0][head], keys[0, head])
        assert torch.equal(found.values[0][head], values[0, head])
    assert found.bias is None


def test_everything_removed_leaves_empty_rows() -> None:
    found = methods.create("simcalkv", total=0).select(*random_tensors(2, 9))
    assert found.budgets.tolist() == [[0, 0]] * 2


@pytest.mark.parametrize("options", [{}, {"merge_order": "sequential"}, {"calibration": "logit"}])
def test_a_padded_batch_equals_its_single_prompts(options: dict) -> None:
    method = methods.create("simcalkv", **options)
    queries, keys, values = random_tensors(2, 41)
    valid = torch.ones(2, 41, dtype=torch.bool)
    valid[1, :13] = False
    together = method.select(queries, keys, values, valid=valid)
    alone = [
        method.select(queries[:1], keys[:1], values[:1]),
        method.select(queries[1:, :, 13:], keys[1:, :, 13:], values[1:, :, 13:]),
    ]
    for row in range(2):
        for head in range(HEADS):
            for name in ("keys", "values"):
                torch.testing.assert_close(
                    getattr(together, name)[row][head], getattr(alone[row], name)[0][head]
                )


def test_protected_tokens_stay_as_they_are_in_number() -> None:
    scores = torch.arange(10.0).flip(0)
    assert removal_order(scores, 3).tolist() == [9, 8, 7]
    assert removal_order(scores, 3, initial=2, recent=4).tolist() == [5, 4, 3]
    assert removal_order(torch.zeros(5), 2).tolist() == [0, 1]
    torch.testing.assert_close(
        normalised_by_queries(torch.tensor([4.0, 3.0, 2.0, 1.0])), torch.ones(4)
    )
    queries, keys, values = random_tensors(1, 20)
    options = {"ratio": 0.5, "protect_initial": 3, "protect_recent": 4, "threshold": 1.0}
    found = methods.create("simcalkv", **options).select(queries, keys, values)
    for head in range(HEADS):
        assert torch.equal(found.keys[0][head][:3], keys[0, head, :3])
        assert torch.equal(found.keys[0][head][-4:], keys[0, head, -4:])


def test_budgets_of_other_methods_decide_how_much_is_merged() -> None:
    method = methods.create("simcalkv", ratio=0.5, budgets=[[6, 25], [10, 10]])
    shape = ModelShape(2, HEADS * GROUP, HEADS, DIM)
    assert method.budget_table(20, shape).tolist() == [[6, 20], [10, 10]]
    for layer in range(2):
        found = method.select(*random_tensors(2, 20), layer=layer, num_layers=2)
        assert found.budgets.tolist() == [method.budget_table(20, shape)[layer].tolist()] * 2
    exact = methods.create("simcalkv").with_total(53, 20, shape)
    assert int(exact.budget_table(20, shape).sum()) == 53
    assert methods.from_dict(method.to_dict()).to_dict() == method.to_dict()


class Largest(torch.utils._python_dispatch.TorchDispatchMode):
    """Elements of the largest tensor that an operation made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, tuple | list) else (result,):
            if isinstance(one, torch.Tensor):
                self.elements = max(self.elements, one.untyped_storage().nbytes() // 4)
        return result


def test_the_map_of_tokens_by_tokens_is_never_made(monkeypatch) -> None:
    monkeypatch.setattr(merging, "BLOCK_BYTES", 1 << 16)
    tokens = 3000
    queries, keys, values = random_tensors(1, tokens)
    sums = torch.rand(1, HEADS * GROUP, tokens, generator=torch.Generator().manual_seed(0))
    method = methods.create("simcalkv", ratio=0.5)
    with Largest() as largest:
        method.select(queries[:, :, -1:], keys, values, column_sums=sums)
    assert largest.elements <= max(keys.numel() * GROUP, 1 << 14)
    assert largest.elements < tokens**2 // 40


class Made(torch.utils._python_dispatch.TorchDispatchMode):
    """How many tensors of at least ``least`` bytes operations made, views and results that were
    written into given tensors not counted."""

    def __init__(self, least: int):
        super().__init__()
        self.least, self.count = least, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        given = {
            one.untyped_storage().data_ptr()
            for one in (*args, *(kwargs or {}).values())
            if isinstance(one, torch.Tensor)
        }
        for one in result if isinstance(result, tuple | list) else (result,):
            if isinstance(one, torch.Tensor):
                storage = one.untyped_storage()
                self.count += storage.nbytes() >= self.least and storage.data_ptr() not in given
        return result


def test_all_blocks_share_one_buffer(monkeypatch) -> None:
    # made anew for every block, they left gigabytes of holes in the heap at 128K tokens
    monkeypatch.setattr(merging, "BLOCK_BYTES", 1 << 16)
    leaving, kept = torch.randn(2, 600, 8, generator=torch.Generator().manual_seed(0))
    with Made(1 << 15) as made:
        nearest_kept(leaving, kept)
    assert made.count == 1


def test_blocks_do_not_change_who_is_nearest(monkeypatch) -> None:
    generator = torch.Generator().manual_seed(0)
    leaving, kept = (
        torch.randn(100, 8, generator=generator),
        torch.randn(60, 8, generator=generator),
    )
    whole = nearest_kept(leaving, kept)
    monkeypatch.setattr(merging, "BLOCK_BYTES", 4 * 60 * 7)
    parts = nearest_kept(leaving, kept)
    assert torch.equal(whole[0], parts[0])
    tied = nearest_kept(torch.ones(2, 3), torch.ones(5, 3))
    assert tied[0].tolist() == [0, 0]


@pytest.mark.parametrize("calibration", ["key_const", "logit", "none"])
@pytest.mark.parametrize("merge_order", ["batched", "sequential"])
def test_half_precision_does_not_overflow(calibration: str, merge_order: str) -> None:
    # logits of several thousand, whose exponentials no format holds, and sums over many tokens
    generator = torch.Generator().manual_seed(0)
    keys, values = torch.randn(2, 1, HEADS, 300, DIM, generator=generator)
    queries = torch.randn(1, HEADS * GROUP, 1, DIM, generator=generator)
    queries, keys = (200 * queries).half(), (30 * keys).half()
    values = (20000 * values.sign()).half()
    sums = torch.full((1, HEADS * GROUP, 300), 60000.0)
    method = methods.create("simcalkv", calibration=calibration, merge_order=merge_order)
    found = method.select(queries, keys, values, scaling=SCALING, column_sums=sums)
    for head in range(HEADS):
        assert found.keys[0][head].dtype == torch.float16
        assert bool(found.keys[0][head].isfinite().all())
        assert bool(found.values[0][head].isfinite().all())
        assert float(found.values[0][head].abs().max()) <= 20000
    exact = method.select(
        queries.float(), keys.float(), values.float(), scaling=SCALING, column_sums=sums
    )
    torch.testing.assert_close(
        found.values[0][0].float(), exact.values[0][0], rtol=2e-3, atol=20000 * 2e-3
    )


def test_merging_again_while_decoding() -> None:
    queries, keys, values = random_tensors(2, 60)
    method = methods.create("simcalkv", preset="recommended", ratio=0.5, remerge_every=8)
    prompt = [x[:, :, :20] for x in (queries, keys, values)]
    prefix, store = after_prefill(method, *prompt)
    assert store.lengths().tolist() == [[10, 10]] * 2
    visible = torch.ones(2, 8, dtype=torch.bool)
    visible[1, 2] = False
    few = [x[:, :, 20:27] for x in (queries, keys, values)]
    assert store.absorb(*few, SCALING, None) == 0
    many = [x[:, :, 20:28] for x in (queries, keys, values)]
    fork = copy.deepcopy(store)
    assert store.absorb(*many, SCALING, visible) == 8
    assert store.lengths().tolist() == [[14, 14], [14, 14]]  # half of 28, and of 27
    merged, _ = store.read(queries, SCALING)
    for row in range(2):
        # nothing was lost: what was dropped before prefill ended is all that is missing
        _, _, before = prefix.row(row, 0)
        _, _, after = merged.row(row, 0)
        assert float(after.exp().sum()) <= float(before.exp().sum()) + 8 + 1e-3
    assert fork.lengths().tolist() == [[10, 10]] * 2
    beams = store.select_rows([1, 1, 0])
    assert beams.absorb(*(x[[1, 1, 0]] for x in many), SCALING, None) == 8
    assert store.lengths().tolist() == [[14, 14], [14, 14]]


def test_everything_seen_is_merged_again_if_nothing_is_to_be_removed() -> None:
    queries, keys, values = random_tensors(1, 30)
    method = methods.create("simcalkv", ratio=0.0, remerge_every=1)
    _, store = after_prefill(method, *(x[:, :, :20] for x in (queries, keys, values)))
    assert store.absorb(*(x[:, :, 20:] for x in (queries, keys, values)), SCALING, None) == 10
    prefix, _ = store.read(queries, SCALING)
    for head in range(HEADS):
        assert torch.equal(prefix.row(0, head)[0], keys[0, head])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ratio": 1.5}, "ratio 1.5 is outside"),
        ({"ratio": -0.1}, "ratio -0.1 is outside"),
        ({"ratio": math.nan}, "ratio nan is not a number"),
        ({"ratio": "half"}, "ratio 'half' is not a number"),
        ({"threshold": "high"}, "threshold 'high' is not a number"),
        ({"calibration": "exact"}, "use key_const, logit, none"),
        ({"key_mean": "third"}, "use half or uniform"),
        ({"merge_order": "random"}, "use batched or sequential"),
        ({"merge_order": "sequential", "key_mean": "uniform"}, "key_mean='half'"),
        ({"threshold": 1.01}, r"threshold 1.01 is outside \[-1, 1\]"),
        ({"threshold": -2.0}, "outside"),
        ({"protect_recent": -1}, "protect_recent -1 must be at least 0"),
        ({"protect_recent": 1.5}, "protect_recent 1.5 is not a whole number"),
        ({"remerge_every": None}, "remerge_every None is not a whole number"),
        ({"causal_normalise": "no"}, "is not true or false"),
        ({"total": 1.5}, "total 1.5 is not a whole number"),
        ({"total": -1}, "total -1 must be at least 0"),
    ],
)
def test_bad_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        methods.create("simcalkv", **options)


def test_a_ratio_that_needs_protected_tokens_is_refused() -> None:
    method = methods.create("simcalkv", ratio=0.8, protect_recent=5)
    with pytest.raises(UserError, match="leaves 4 of 20 tokens but 5 are protected"):
        method.select(*random_tensors(1, 20))
