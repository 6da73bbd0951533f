"""Some pairs of a data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from datasets import Batch, Item, PairedData, eval_batches


class Picked:
    """Some pairs of a data set, as a data set."""

    def __init__(self, data: PairedData, chosen: Sequence[int]) -> None:
        self.data, self.chosen = data, chosen
        self.size, self.num_classes, self.notice = data.size, data.num_classes, data.notice
        self.source_channels, self.target_channels = data.source_channels, data.target_channels
        self.names = [data.names[i] for i in chosen]

    def __len__(self) -> int:
        return len(self.chosen)

    def get(self, index: int, rng: np.random.Generator | None) -> Item:
        return self.data.get(self.chosen[index], rng)

    def batches(self, batch_size: int, workers: int = 0) -> Iterator[Batch]:
        """All pairs, with their index in the whole data set."""
        own = torch.tensor(self.chosen)
        for batch in eval_batches(self, batch_size=batch_size, workers=workers):
            yield batch._replace(index=own[batch.index])
