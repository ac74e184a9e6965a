from girih_ssl import MAEConfig
from girih_ssl.testing import ObjectiveContract


class TestMAE(ObjectiveContract):
    config = MAEConfig

    def test_a_class_may_have_tests_of_its_own(self):
        assert self.config is MAEConfig


class TestSmallAnisotropicBlocks(ObjectiveContract):
    config = MAEConfig(mask_ratio=0.5, block_zyx=(2, 4, 6))
