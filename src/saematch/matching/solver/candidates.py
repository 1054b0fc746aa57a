"""Candidates: the columns that a row can bid for."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int32, Int64

from saematch.matching.solver.products import Products


class Candidates:
    """All columns if similarities are stored whole, else the best of each row's last scan."""

    values: Float32[np.ndarray, "n length"]
    """Similarity of each row to its candidates."""
    columns: Int32[np.ndarray, "n_lists length"]
    """Columns of the candidates; one list for all rows if every column is a candidate."""
    whole: bool
    """Whether every column is a candidate of every row, in order."""
    bound: Float64[np.ndarray, " n"]
    """Upper bound on a row's net value of any other column, at the current prices."""

    def __init__(self, products: Products, length: int, prices: Float64[np.ndarray, " m"]) -> None:
        self._products = products
        self.bound = np.full(products.n, -np.inf)
        self.whole = products.held is not None
        if products.held is not None:
            self.values = products.held.numpy()
            self.columns = np.arange(products.m, dtype=np.int32)[None]
            return
        self.values = np.empty((products.n, length), np.float32)
        self.columns = np.empty((products.n, length), np.int32)
        for block, similarity in products.blocks("lists"):
            self._choose(np.arange(block.start, block.stop), similarity, prices)

    def scan(self, rows: Int64[np.ndarray, " k"], prices: Float64[np.ndarray, " m"]) -> None:
        """Choose the candidates of the given rows again, at the current prices."""
        for start in range(0, len(rows), self._products.rows_at_once):
            block = rows[start : start + self._products.rows_at_once]
            self._choose(block, self._products.of_rows(block), prices)

    def _choose(
        self,
        rows: Int64[np.ndarray, " k"],
        similarity: Float32[torch.Tensor, "k m"],
        prices: Float64[np.ndarray, " m"],
    ) -> None:
        m, length = similarity.shape[1], self.values.shape[1]
        # Among equally good columns, each block of rows prefers different ones.
        shift = int(rows[0]) * 40503 % m
        paid = torch.from_numpy(prices).float().to(similarity.device)
        net = torch.roll(similarity - paid, shift, dims=1)
        best = net.topk(min(length + 1, m), dim=1)
        columns = (best.indices[:, :length] - shift) % m
        self.values[rows] = similarity.gather(1, columns).cpu().numpy()
        self.columns[rows] = columns.cpu().numpy()
        if length < m:
            # Net values in float32 may be off by more than epsilon. Without the minimum a row could
            # reject its own list again and again.
            surely = (self.values[rows] - prices[self.columns[rows]]).max(axis=1)
            self.bound[rows] = np.minimum(best.values[:, length].cpu().numpy(), surely)
