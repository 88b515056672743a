"""What tests of several rooms share."""

from tests.postgresql import postgresql

__all__ = ["postgresql"]
