# Short names for `python3 run.py ...`.
.PHONY: demo test setup
demo test setup:
	@python3 run.py $@
