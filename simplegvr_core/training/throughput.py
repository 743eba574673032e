"""Throughput of a build of pairs, and its bottleneck."""

from time import monotonic

from .pair_maker import Made


class Throughput:
    """Counts clips and the seconds of their reading and making, over all processes."""

    def __init__(self) -> None:
        self.begin, self.clips, self.reading, self.making = monotonic(), 0, 0.0, 0.0
        self.workers: set[str] = set()

    def count(self, made: Made) -> None:
        if not self.clips:
            self.begin = monotonic() - made.reading - made.making  # without the start of a cluster
        self.clips += 1
        self.reading += made.reading
        self.making += made.making
        self.workers.add(made.worker)

    def report(self) -> dict | None:
        """Returns the throughput; None where no clip was counted.

        Returns:
            {"clips_per_second", "reading_seconds", "making_seconds": sums over all processes, "workers": processes that made pairs,
            "busy": the share of their time in which they did, "bottleneck": "making" where that is more than half, else "reading"}.
        """
        if not self.clips:
            return None
        elapsed = monotonic() - self.begin
        busy = self.making / (elapsed * len(self.workers))
        return {
            "clips_per_second": self.clips / elapsed,
            "reading_seconds": self.reading,
            "making_seconds": self.making,
            "workers": len(self.workers),
            "busy": busy,
            "bottleneck": "making" if busy > 0.5 else "reading",
        }
