"""Checks of augmentation options. Each check raises `ValueError` with the rule."""

from jaxcls.augment.rows import Amount


def check_share(name: str, value: float) -> None:
    """Raises `ValueError` unless the value is from 0 to 1."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} must be from 0 to 1, such as 0.5")


def check_levels(name: str, value: float, largest: int = 255) -> None:
    """Raises `ValueError` unless the value is from 0 to the largest."""
    if not 0 <= value <= largest:
        raise ValueError(f"{name}={value} must be from 0 to {largest}, such as 128")


def check_sigma(sigma: tuple[float, float]) -> None:
    """Raises `ValueError` unless 0 <= sigma[0] <= sigma[1] <= 16 pixels."""
    if not 0 <= sigma[0] <= sigma[1] <= 16:
        raise ValueError(
            f"sigma={sigma} must rise from at least 0 to at most 16, such as (0.1, 2.0)"
        )


def check_amount(name: str, amount: Amount, largest: float, good: str) -> None:
    """Raises `ValueError` unless the amount is from 0 to the largest throughout the run."""
    if not all(0 <= end <= largest for end in ends(amount)):
        raise ValueError(f"{name}={amount} must be from 0 to {largest:g}, such as {good}")


def check_alpha(name: str, amount: Amount) -> None:
    """Raises `ValueError` for an amount that is ever negative, or 0 throughout the run."""
    low, high = sorted(ends(amount))
    if low < 0 or high == 0:
        rule = (
            "must be above 0"
            if isinstance(amount, int | float)
            else "must be at least 0, one above"
        )
        raise ValueError(f"{name}={amount} {rule}, such as 0.2 or (0.0, 0.2)")


def ends(amount: Amount) -> tuple[float, float]:
    """Returns the amount at the start and at the end of the run."""
    return (amount, amount) if isinstance(amount, int | float) else amount
