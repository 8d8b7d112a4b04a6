"""The checks that tools/doctor.py runs."""
