"""The training loop: it learns, it resumes to the same losses, and nothing is lost when something goes wrong."""

import errno
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from sources import Points, lose
from torch import nn

from simplegvr_core.training.loop import LoopConfig, Run, fit
from simplegvr_core.training.reader import Reader
from simplegvr_core.training.state import Progress

pytestmark = pytest.mark.usefixtures("one_thread")
CPU = torch.device("cpu")
LOOP = LoopConfig(steps=12, warmup=2, save_every=5, cpu=True)


class Regression(nn.Module):
    """A small network with the loss of drawing the sine."""

    def __init__(self, seed=0, width=16):
        super().__init__()
        torch.manual_seed(seed)
        self.network = nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1))

    def forward(self, x):
        return (self.network(x) - torch.sin(3 * x)).square().mean()


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "losses.jsonl").read_text().splitlines()]


def saved_step(folder):
    return torch.load(folder / "state.pt", weights_only=True)["progress"]["step"]


def stop(batch):
    raise KeyboardInterrupt


def test_the_loss_falls(tmp_path):
    fit(Regression(), Points(), LoopConfig(steps=400, learning_rate=3e-2, warmup=10, ema=0.9, cpu=True), tmp_path)
    assert losses(tmp_path)[-1] < 0.1 * losses(tmp_path)[0]
    assert (tmp_path / "loss.png").read_bytes()[1:4] == b"PNG"


def test_a_stopped_run_resumes_with_the_losses_it_would_have_had(tmp_path):
    whole = fit(Regression(), Points(), LOOP, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(Regression(), Points(8, stop), LOOP, tmp_path / "stopped")
    assert saved_step(tmp_path / "stopped") == 5
    resumed = fit(Regression(seed=1), Points(), LOOP, tmp_path / "stopped")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_result_is_a_moving_average(tmp_path):
    model = Regression()
    average = fit(model, Points(), LoopConfig(steps=30, learning_rate=1e-2, ema=0.9, cpu=True, save_every=30), tmp_path)
    last = torch.load(tmp_path / "state.pt", weights_only=True)["model"]
    assert not torch.equal(average["network.0.weight"], last["network.0.weight"])
    torch.testing.assert_close(average["network.0.weight"], last["network.0.weight"], atol=0.1, rtol=0)


def test_accumulated_batches_count_as_one_step(tmp_path):
    """Two halves, one after the other, have the samples and the loss of the whole."""
    fit(Regression(), Points(batch=16), replace(LOOP, accumulate=2), tmp_path / "halves")
    fit(Regression(), Points(), LOOP, tmp_path / "whole")
    torch.testing.assert_close(losses(tmp_path / "halves"), losses(tmp_path / "whole"), atol=1e-6, rtol=0)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_process_reads_its_own_samples_and_all_make_the_same_step(accumulate):
    steps = []
    for processes in (1, 2, 4):
        points = [Points(batch=8 // accumulate) for _ in range(processes)]
        readers = [Reader(own, CPU, seed=0, accumulate=accumulate, process=p, processes=processes) for p, own in enumerate(points)]
        batches = [[reader[3 * accumulate + i]["x"] for reader in readers] for i in range(accumulate)]
        steps.append(torch.cat([part for parts in batches for part in parts]))
        assert all(sum(len(samples) for _, samples in own.seen) == 8 // processes for own in points)
    assert torch.equal(steps[0], steps[1]) and torch.equal(steps[0], steps[2])
    assert len(steps[0].unique()) == 8


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(ValueError, match="a batch of 6 cannot be divided among 4 processes"):
        Reader(Points(batch=6), CPU, seed=0, accumulate=1, process=0, processes=4)


@pytest.mark.parametrize("schedule, half", [("constant", 1.0), ("sqrt", 0.5**0.5), ("linear", 0.5), ("cosine", 0.5)])
def test_schedules_fall(schedule, half):
    loop, progress = LoopConfig(steps=10, warmup=2, schedule=schedule), Progress([], 0.9)
    assert loop.rate(progress) == pytest.approx(loop.learning_rate / 2)
    progress.step = 5
    assert loop.rate(progress) == pytest.approx(half * loop.learning_rate)


def test_what_a_worker_cannot_read_is_named_as_without_workers(tmp_path):
    """Without the traceback of the worker; the state before stays."""
    with pytest.raises(ValueError, match=r"^a shard is gone$"):
        fit(Regression(), Points(7, lose), replace(LOOP, workers=1), tmp_path)
    assert saved_step(tmp_path) == 5


def test_a_loss_that_is_not_finite_stops_and_names_the_last_good_state(tmp_path):
    explode = Points(7, lambda batch: {"x": batch["x"] * float("nan")})
    with pytest.raises(FloatingPointError, match=r"step 7: lower loop\.learning_rate.*state\.pt"):
        fit(Regression(), explode, LOOP, tmp_path)
    assert saved_step(tmp_path) == 5


def test_a_gradient_that_is_not_finite_stops_before_it_spoils_the_weights(tmp_path):
    class Endless(Regression):
        def forward(self, x):
            root = torch.sqrt(self.network[0].weight.sum() * 0)  # finite, its gradient is not
            return super().forward(x) + root

    with pytest.raises(FloatingPointError, match="step 0: lower"):
        model = Endless()
        before = model.network[0].weight.clone()
        fit(model, Points(), LOOP, tmp_path)
    assert torch.equal(model.network[0].weight, before)


def test_losses_of_a_run_that_saved_nothing_are_forgotten(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(Regression(), Points(3, stop), LOOP, tmp_path)
    with (tmp_path / "losses.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')  # killed while it wrote
    fit(Regression(), Points(), LOOP, tmp_path)
    assert len(losses(tmp_path)) == 12


def test_other_options_are_refused(tmp_path):
    fit(Regression(), Points(), LOOP, tmp_path, options={"noise_range": "(0.3, 0.6)"})
    with pytest.raises(ValueError, match=r"was begun with noise_range = \(0\.3, 0\.6\), now it is \(0\.0, 0\.3\).*another --out"):
        fit(Regression(), Points(), LOOP, tmp_path, options={"noise_range": "(0.0, 0.3)"})


def test_the_optimizer_of_a_resumed_run_is_the_one_asked_for(tmp_path):
    fit(Regression(), Points(), replace(LOOP, steps=2), tmp_path)
    run = Run(Regression(), Points(), replace(LOOP, betas=(0.5, 0.6), weight_decay=0.3), tmp_path, options={})
    assert run.progress.step == 2
    assert all((group["betas"], group["weight_decay"]) == ((0.5, 0.6), 0.3) for group in run.optimizer.param_groups)


def test_running_out_of_memory_says_what_to_do_and_keeps_the_state(tmp_path):
    def exhaust(batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RuntimeError, match=r"out of memory at step 7.*state\.pt has.*gradient checkpointing"):
        fit(Regression(), Points(7, exhaust), LOOP, tmp_path)
    assert saved_step(tmp_path) == 5


def test_a_full_disk_keeps_the_state_before_and_a_rerun_goes_on(tmp_path, monkeypatch):
    save, calls = torch.save, []

    def full(state, path):
        calls.append(1)
        save(state, path)
        if len(calls) == 2:
            path.write_bytes(path.read_bytes()[:100])
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"state\.pt cannot be written \(at step 10.*No space left.*free space"):
        fit(Regression(), Points(), LOOP, tmp_path / "full")
    assert saved_step(tmp_path / "full") == 5
    assert not list((tmp_path / "full").glob("*partial*"))
    resumed = fit(Regression(), Points(), LOOP, tmp_path / "full")
    whole = fit(Regression(), Points(), LOOP, tmp_path / "whole")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_state_of_another_network_is_refused(tmp_path):
    fit(Regression(), Points(), LOOP, tmp_path)
    with pytest.raises(ValueError, match=r"state\.pt is the state of another network \(3 tensors differ.*choose another --out"):
        fit(Regression(width=8), Points(), LOOP, tmp_path)
    assert saved_step(tmp_path) == 12


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file.run is below a file, wanted a folder: choose another"):
        fit(Regression(), Points(), LOOP, tmp_path / "file" / "run")


def test_a_disk_without_room_for_the_state_is_named_before_the_first_step(tmp_path, monkeypatch):
    """Of each parameter it has the weight, two moments and the average, 4 bytes each."""
    import shutil

    parameters = sum(parameter.numel() for parameter in Regression(width=8).parameters())
    free = 16 * parameters
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    fit(Regression(width=8), Points(), LOOP, tmp_path / "fits")
    free -= 1
    with pytest.raises(OSError, match=r"has .* free, the run needs at least .*: free space there or choose another folder"):
        fit(Regression(width=8), Points(), LOOP, tmp_path / "full")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["run.lock"]


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: bytes(len(data)), lambda data: data[: len(data) // 2]])
def test_a_damaged_state_is_named(tmp_path, damage):
    fit(Regression(), Points(), LoopConfig(steps=4, learning_rate=3e-2, cpu=True), tmp_path)
    state = tmp_path / "state.pt"
    state.write_bytes(damage(state.read_bytes()))
    with pytest.raises(ValueError, match=r"state\.pt is damaged .*: delete it to begin anew"):
        fit(Regression(), Points(), LoopConfig(steps=4, learning_rate=3e-2, cpu=True), tmp_path)
