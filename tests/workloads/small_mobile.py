"""The real MobileNet and ShuffleNet workloads with few blocks, on the patterns of `tests.toys`."""

from ml_collections import ConfigDict

from configs.mobilenet import get_config as mobilenet_config
from configs.shufflenet import get_config as shufflenet_config
from mlperf_jax.workloads.image_classification import MobileNet, ShuffleNet
from tests.toys import CLASSES, SIZE, SmallResNet

_MODEL = dict(num_classes=CLASSES, image_size=SIZE, channels_in=1)
_SMALL = dict(
    data=dict(name="patterns", mean=(128.0,), std=(64.0,), num_train=104, num_eval=44),
    batch_size=8,
    eval_batch_size=8,
    target=0.99,
)


def _small(config, **model):
    return ConfigDict(config.to_dict() | _SMALL | {"model": config.model.to_dict() | _MODEL | model})


class SmallMobileNet(MobileNet):
    dataset = SmallResNet.dataset

    @staticmethod
    def get_config(preset):
        return _small(mobilenet_config("mini"), stem=8, blocks=((16, 1), (16, 2)))


class SmallShuffleNet(ShuffleNet):
    dataset = SmallResNet.dataset

    @staticmethod
    def get_config(preset):
        return _small(shufflenet_config("mini"), stem_width=8, widths=(16, 32), repeats=(2, 1), last=16)


class SmallShuffleNetV1(SmallShuffleNet):
    @staticmethod
    def get_config(preset):
        model = dict(version=1, groups=2, stem_width=8, widths=(16, 32), repeats=(2, 1))
        return _small(shufflenet_config("mini"), **model)
