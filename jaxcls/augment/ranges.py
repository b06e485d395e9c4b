"""What the options of an entry may be; each raises the ValueError that says so."""

from jaxcls.augment.rows import Amount


def check_share(name: str, value: float) -> None:
    """Raise unless `value` is from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} must be from 0 to 1, such as 0.5")


def check_amount(name: str, amount: Amount) -> None:
    """Raise unless `amount` is nowhere below 0, and above it at some time of the run."""
    ends = (amount,) if isinstance(amount, int | float) else tuple(amount)
    if min(ends) < 0 or max(ends) == 0:
        rule = "must be above 0" if len(ends) == 1 else "must be at least 0, one above"
        raise ValueError(f"{name}={amount} {rule}, such as 0.2 or (0.0, 0.2)")
