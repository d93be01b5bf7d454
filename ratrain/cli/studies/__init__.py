"""Commands on studies: --ablate, --ladder, try, plan."""
