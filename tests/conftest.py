"""What tests of several rooms share."""

from hypothesis import settings

from tests.postgresql import postgresql

settings.register_profile("tandem", deadline=None)  # A busy machine is no fault of what is tested.
settings.load_profile("tandem")

__all__ = ["postgresql"]
