"""The GPU kernels at Kimi K2's sizes: answers checked, then bytes per second beside the device's own copy rate and a peer.

Run with ``pytest bench/test_gpu_kernels.py -s`` on a machine with a CUDA device of 24 GB or more; elsewhere it is skipped. The
copy rate is measured in the same test, right before the kernel. One layer's 384 experts take 9.5 GB, so no figure is of cached
weights. The peer of the experts is PyTorch's own bfloat16 product with unpacked weights, expert after expert: four times the
bytes, no unpacking. Goals, as ratios to the copy rate: experts 0.50 for one token, 0.60 for 8 to 128; attention 0.60 from 32k
positions on. For 4096 tokens the ratio is to the rate of a bfloat16 product: 0.45.
"""

import statistics

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")
if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

from k2core_kernels.triton.mla_decode import mla_decode  # noqa: E402  # only where a device is
from k2core_kernels.triton.moe_experts import FEW, moe_experts  # noqa: E402

EXPERTS, TOP_K, HIDDEN, INNER, GROUP = 384, 8, 7168, 2048, 32
EXPERT_BYTES = 3 * HIDDEN * INNER * (4 + 16 / GROUP) / 8
HEADS, RANK, ROPE, PAGE, SCALE = 64, 512, 64, 64, 0.1446796


def seconds(run, rounds=20):
    """Median time of a call on the device, warmed up."""
    for _ in range(3):
        run()
    times = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def copy_rate():
    """Bytes per second read and written by a copy of 2 GiB."""
    source = torch.empty(1 << 31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / seconds(lambda: target.copy_(source), 10)


def matmul_rate():
    """Operations per second of a large bfloat16 product."""
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    return 2 * 8192**3 / seconds(lambda: a @ a, 10)


def timed(benchmark, run):
    """Seconds by the device's clock; pytest-benchmark shows and keeps the wall time with a wait for the device."""
    benchmark.pedantic(lambda: (run(), torch.cuda.synchronize()), rounds=10, warmup_rounds=2)
    return seconds(run)


@pytest.fixture(scope="module")
def layer():
    """One layer's experts: gate, up and down with their scales, all distinct."""
    made = []
    for rows, columns in ((INNER, HIDDEN), (INNER, HIDDEN), (HIDDEN, INNER)):
        made.append(torch.randint(-(2**31), 2**31 - 1, (EXPERTS, rows, columns // 8), dtype=torch.int32, device="cuda"))
        scale = torch.rand((EXPERTS, rows, columns // GROUP), device="cuda") * 0.01
        made.append(scale.to(torch.bfloat16))
    return made


def unpacked(words, scale):
    """(rows, columns) float32."""
    shifts = torch.arange(0, 32, 4, device="cuda", dtype=torch.int32)
    codes = (((words[..., None] >> shifts) & 15) - 8).to(torch.float32).view(*scale.shape, GROUP)
    return (codes * scale.to(torch.float32)[..., None]).flatten(-2)


def routing(tokens):
    """Random inputs, and TOP_K different experts per token."""
    x = torch.randn(tokens, HIDDEN, device="cuda")
    ids = torch.rand(tokens, EXPERTS, device="cuda").topk(TOP_K).indices
    return x, ids, torch.rand(tokens, TOP_K, device="cuda")


def reference(layer, x, ids, weights):
    """The first token's sum in float64."""
    total = torch.zeros(HIDDEN, dtype=torch.float64, device="cuda")
    for expert, weight in zip(ids[0].tolist(), weights[0].tolist(), strict=True):
        gate, up, down = (unpacked(layer[i][expert], layer[i + 1][expert]).to(torch.float64) for i in (0, 2, 4))
        vector = x[0].to(torch.float64)
        total += weight * (down @ (torch.nn.functional.silu(gate @ vector) * (up @ vector)))
    return total


def with_cuda(*arguments, exact):
    """The CUDA C++ kernels."""
    return pytest.importorskip("k2core_kernels.cuda.moe_experts_decode").moe_experts_decode(*arguments, exact=exact)


CASES = [("triton", tokens) for tokens in (1, 2, 4, 8, 32, 128, 1024, 4096)] + [("cuda", tokens) for tokens in (1, 2, 4, 8)]


@pytest.mark.parametrize("exact", [False, True], ids=["w4a16", "exact"])
@pytest.mark.parametrize(("kernels", "tokens"), CASES)
def test_moe_experts(benchmark, layer, kernels, tokens, exact):
    """One layer's routed experts."""
    if exact and tokens > FEW:
        pytest.skip("exact prefill is not what anyone waits for")
    x, ids, weights = routing(tokens)
    run = moe_experts if kernels == "triton" else with_cuda
    got, want = run(x, *layer, ids, weights, exact=exact)[0].to(torch.float64), reference(layer, x, ids, weights)
    error = float((got - want).norm() / want.norm())
    assert error < (1e-5 if exact else 2e-2)
    copies, spent = copy_rate(), timed(benchmark, lambda: run(x, *layer, ids, weights, exact=exact))
    experts = len(ids.unique())
    rate = experts * EXPERT_BYTES / spent
    line = (
        f"\n{kernels} {'exact' if exact else 'w4a16'} T={tokens}: {spent * 1e6:.0f} us, {experts} experts, error {error:.1e}, "
    )
    line += f"{rate / 1e12:.2f} TB/s = {rate / copies:.2f} of the copy rate"
    if tokens >= 1024:
        operations = 6 * tokens * TOP_K * HIDDEN * INNER / spent
        line += f", {operations / 1e12:.0f} TFLOP/s = {operations / matmul_rate():.2f} of a bfloat16 product's"
    print(f"{line} ({torch.cuda.get_device_name()})")


@pytest.mark.parametrize("tokens", [1, 8])
def test_moe_experts_peer(benchmark, layer, tokens):
    """PyTorch's bfloat16 products with the same experts, unpacked beforehand."""
    x, ids, weights = routing(tokens)
    x = x.to(torch.bfloat16)
    plain = {
        expert: [unpacked(layer[i][expert], layer[i + 1][expert]).to(torch.bfloat16) for i in (0, 2, 4)]
        for expert in ids.unique().tolist()
    }
    chosen = ids.tolist()

    def run():
        for token, row in enumerate(chosen):
            for slot, expert in enumerate(row):
                gate, up, down = plain[expert]
                vector = x[token]
                inner = torch.nn.functional.silu(gate @ vector) * (up @ vector)
                _ = (down @ inner) * weights[token, slot]

    print(f"\ntorch bfloat16 T={tokens}: {timed(benchmark, run) * 1e6:.0f} us")


@pytest.mark.parametrize(("rows", "context"), [(1, 32768), (1, 131072), (16, 32768), (64, 8192), (4, 262144)])
def test_mla_decode(benchmark, rows, context):
    """One layer's attention of *rows* sequences, bfloat16 pages in random order."""
    most = context // PAGE
    pages = torch.randn(rows * most, PAGE, RANK + ROPE, device="cuda").to(torch.bfloat16)
    table = torch.randperm(rows * most, device="cuda").to(torch.int32).view(rows, most)
    lengths = torch.full((rows,), context, dtype=torch.int32, device="cuda")
    query = torch.randn(rows, HEADS, RANK + ROPE, device="cuda") * 0.1

    def run():
        return mla_decode(query, pages, table, lengths, rank=RANK, scale=SCALE)

    got = run()[0]
    latent = pages[table[0].long()].flatten(0, 1).to(torch.float32)
    shares = torch.softmax(query[0].to(torch.bfloat16).to(torch.float32) @ latent.t() * SCALE, -1)
    want = shares @ latent[:, :RANK]
    error = float((got - want).norm() / want.norm())
    assert error < 2e-2
    copies, spent = copy_rate(), timed(benchmark, run)
    rate = rows * context * (RANK + ROPE) * 2 / spent
    print(
        f"\nmla_decode rows={rows} context={context}: {spent * 1e6:.0f} us, error {error:.1e}, {rate / 1e12:.2f} TB/s = "
        f"{rate / copies:.2f} of the copy rate ({torch.cuda.get_device_name()})"
    )
