"""A workload that computes something else under any layout but dp: `compare` must find it out."""

from configs import resnet50
from mlperf_jax.parallel import layout
from mlperf_jax.workloads.image_classification import ResNet50


class Crooked(ResNet50):
    @staticmethod
    def get_config(preset):
        return resnet50.get_config(preset)

    def loss(self, model, batch, key):
        off = 1.0 if layout._active.get().strategy.name == "dp" else 1.001
        total, weight = super().loss(model, batch, key)
        return off * total, weight
