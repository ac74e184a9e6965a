from girih_ssl.multitalent import MultiTalentConfig
from girih_ssl.testing import ObjectiveContract


class TestMultiTalent(ObjectiveContract):
    config = MultiTalentConfig
