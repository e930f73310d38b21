"""The models of timm, built lazily, equal those built eagerly."""

from __future__ import annotations

import pytest
from catalog import Model
from claims import assert_catalog_is_recorded, assert_lazy_equals_eager
from libraries import models

MODELS = models("timm")


def test_catalog_is_complete() -> None:
    assert_catalog_is_recorded("timm", [row.name for row in MODELS], at_least=70)


@pytest.mark.parametrize("row", MODELS, ids=lambda row: row.name)
def test_lazy_model_equals_eager_model(row: Model) -> None:
    assert_lazy_equals_eager("timm", row)
