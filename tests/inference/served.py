"""A toy that is served; the door loads it as `--workload=tests.inference.served:Served`."""

from ml_collections import ConfigDict

from tests.toys import SmallResNet


class Served(SmallResNet):
    @staticmethod
    def get_config(preset):
        numbers = dict(
            loadgen_model="",
            min_duration_s=0.5,
            batch_sizes=(1, 4, 16),
            samples_on_device=False,
            quality_share=0.99,
            published_quality=0.0,
            sut_timeout_s=30.0,
        )
        config = SmallResNet.get_config(preset)
        return ConfigDict(config.to_dict() | {"inference": numbers, "max_epochs": 6})
