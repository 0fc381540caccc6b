import pytest

from k24lab.errors import ConfigError
from k24lab.inference.costs import (
    DTYPE_BYTES,
    Layer,
    agent_layers,
    bound_table,
    kernel_shape,
    team_bytes,
    team_memory,
)

REFERENCE = agent_layers(obs_dim=21, hidden_dim=64, n_actions=5)


def test_reference_network_counts():
    weights = {layer.name: layer.weights for layer in REFERENCE}
    assert weights == {
        "fc1": 64 * 21,
        "GRU input": 192 * 64,
        "GRU hidden": 192 * 64,
        "fc2": 64 * 64,
        "fc3": 64 * 64,
        "fc4": 5 * 64,
    }
    assert sum(weights.values()) == 34432


def bounds_of(layers):
    return bound_table(layers).set_index("masked")


def test_gru_holds_71_percent_and_bounds_fc_masks_to_1_17():
    bounds = bounds_of(REFERENCE)
    assert 1 - bounds["masked_share"]["fc"] == pytest.approx(24576 / 34432)
    assert round(1 - bounds["masked_share"]["fc"], 2) == 0.71
    assert bounds["bound"]["fc"] == pytest.approx(34432 / (24576 + 9856 / 2))
    assert round(bounds["bound"]["fc"], 2) == 1.17
    assert bounds["bound"]["all"] == 2.0
    assert bounds["bound"]["none"] == 1.0


@pytest.mark.parametrize(("in_features", "groups", "kept"), [(1, 1, 2), (3, 1, 2), (4, 1, 2), (5, 2, 4), (21, 6, 12)])
def test_groups_of_one_row(in_features, groups, kept):
    layer = Layer("x", "fc", 1, in_features)
    assert (layer.groups, layer.kept) == (groups, kept)


@pytest.mark.parametrize("hidden_dim", [1, 2, 3, 5, 64, 257])
@pytest.mark.parametrize("obs_dim", [1, 2, 3, 4, 7, 100])
def test_more_masks_never_lower_the_bound(obs_dim, hidden_dim):
    bounds = bounds_of(agent_layers(obs_dim, hidden_dim, n_actions=3))["bound"][["none", "fc", "all"]].to_list()
    assert bounds == sorted(bounds)
    assert bounds[0] == 1.0 and bounds[-1] == pytest.approx(2.0)


@pytest.mark.parametrize(("dtype", "ratio"), [("fp16", 9 / 16), ("int8", 10 / 16), ("fp32", 17 / 32)])
def test_packed_ratio(dtype, ratio):
    layer, size = Layer("x", "fc", 64, 64), DTYPE_BYTES[dtype]
    assert layer.packed_bytes(size) == ratio * layer.dense_bytes(size)


def test_team_of_eight_in_fp16():
    biases = 64 + 192 + 192 + 64 + 64 + 5
    dense = 2 * (34432 + biases)
    groups = 64 * 6 + 2 * 192 * 16 + 2 * 64 * 16 + 5 * 16
    assert team_bytes(REFERENCE, 8)["one shared dense network"] == dense
    assert team_bytes(REFERENCE, 8)["a dense network each"] == 8 * dense
    assert team_bytes(REFERENCE, 8)["shared weights + patterns"] == dense + 8 * groups * 3 / 8
    assert team_bytes(REFERENCE, 8)["a packed 2:4 network each"] == 2 * biases + 8 * groups * (2 * 2 + 0.5)


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_memory_grows_with_agents_and_orders_the_storages(dtype):
    table = team_memory(REFERENCE, [2, 4, 8, 64], dtype).pivot(index="n_agents", columns="storage", values="bytes")
    assert set(table.columns) == set(team_bytes(REFERENCE, 2))
    assert (table["one shared dense network"].nunique()) == 1
    assert (table["shared weights + patterns"] < table["a packed 2:4 network each"]).all()
    assert (table["a packed 2:4 network each"] < table["a dense network each"]).all()
    assert table.drop(columns="one shared dense network").diff().dropna().gt(0).all(axis=None)


@pytest.mark.parametrize(("shape", "expected"), [((5, 21), (16, 32)), ((64, 64), (64, 64)), ((33, 65), (48, 80))])
def test_kernel_shape_is_the_next_multiple(shape, expected):
    assert kernel_shape(*shape) == expected


def test_kernel_tile_is_torchs():
    torch = pytest.importorskip("torch")
    for dtype in (torch.float16, torch.bfloat16):
        limits = torch.sparse.SparseSemiStructuredTensorCUSPARSELT._DTYPE_SHAPE_CONSTRAINTS[dtype]
        assert kernel_shape(1, 1) == (limits.sparse_min_rows, limits.sparse_min_cols)


def test_packed_bytes_are_torchs():
    torch = pytest.importorskip("torch")
    conversions = pytest.importorskip("torch.sparse._semi_structured_conversions")
    weight = torch.tensor([1.0, 0.0, 2.0, 0.0], dtype=torch.float16).tile(64, 16)
    packed, meta = conversions.sparse_semi_structured_from_dense_cutlass(weight)
    assert Layer("x", "fc", 64, 64).packed_bytes(2) == packed.nbytes + meta.nbytes


def test_an_unknown_dtype_is_named():
    with pytest.raises(ConfigError, match="unknown dtype 'fp8'"):
        team_bytes(REFERENCE, 2, "fp8")
