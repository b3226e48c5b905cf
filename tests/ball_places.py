"""Where a point lies in a ball."""

from fractions import Fraction

from hypothesis import strategies as st

# Where in a ball: the ends, the middle, anywhere.
PLACES = st.one_of(st.sampled_from([Fraction(-1), Fraction(0), Fraction(1)]), st.fractions(-1, 1))
