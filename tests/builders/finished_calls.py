"""Calls that are over, told to a guide as a U-Net with a helper does; but no U-Net is there."""

from deepcache_patch.cutting.features import FeatureCache, FeatureKey, Recorded
from deepcache_patch.schedules.context import FinishedCall, Position


class Told:
    """Tells a guide of calls, and what each of them replaced."""

    def __init__(self, guide):
        self.guide, self.cache = guide, FeatureCache()

    def call(self, step, features, sample, *, slot=0, num_steps=None):
        """A call of a slot that recorded these features, by branch."""
        replaced = {branch: self.cache.get(slot, branch) for branch in features}
        position = Position(0, step, slot, num_steps)
        self.guide.observe(FinishedCall(position, sample, None, features, replaced, slot))
        for branch, feature in features.items():
            recorded = Recorded(step, FeatureKey.of(sample), feature)
            self.cache.put(slot, branch, recorded, keep=self.guide.keep)
