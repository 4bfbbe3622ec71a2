# Short names for `python3 run.py ...`.
.PHONY: demo test docs setup
demo test docs setup:
	@python3 run.py $@
