"""HTTP dates (RFC 9110 section 5.6.7), without the locale and without the clock.

`http_date` writes the one preferred form, always DATE_LENGTH bytes, which is what lets the server
refresh the Date field of a prebuilt response in place.  `parse_http_date` reads all three forms and
answers None for anything else: a date that cannot be read makes its precondition be ignored.
"""

from __future__ import annotations

import calendar
import re
import time
from typing import Final

DATE_LENGTH: Final = 29

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_MONTH_NUMBER: Final = {name.encode(): number for number, name in enumerate(_MONTHS, 1)}
_LAST_SECOND: Final = 253402300799  # 9999-12-31 23:59:59: a year of five digits does not fit the form

_DAY = rb"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"
_LONG_DAY = rb"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day"
_TIME = rb"(\d\d):(\d\d):(\d\d)"
_MONTH = rb"(" + b"|".join(name.encode() for name in _MONTHS) + rb")"
_IMF: Final = re.compile(_DAY + rb", (\d\d) " + _MONTH + rb" (\d{4}) " + _TIME + rb" GMT", re.ASCII)
_RFC850: Final = re.compile(_LONG_DAY + rb", (\d\d)-" + _MONTH + rb"-(\d\d) " + _TIME + rb" GMT", re.ASCII)
_ASCTIME: Final = re.compile(_DAY + rb" " + _MONTH + rb" ([ \d]\d) " + _TIME + rb" (\d{4})", re.ASCII)


def http_date(seconds: int) -> bytes:
    """The IMF-fixdate of a time in seconds since 1970, DATE_LENGTH bytes; out of range is clamped."""
    at = time.gmtime(min(max(seconds, 0), _LAST_SECOND))
    return (
        f"{_DAYS[at.tm_wday]}, {at.tm_mday:02d} {_MONTHS[at.tm_mon - 1]} {at.tm_year:04d} "
        f"{at.tm_hour:02d}:{at.tm_min:02d}:{at.tm_sec:02d} GMT"
    ).encode()


def parse_http_date(text: bytes, this_year: int = 2026) -> int | None:
    """Seconds since 1970, or None if `text` is no HTTP date.

    `this_year` settles the two-digit years of the obsolete RFC 850 form: one that would lie more than
    50 years ahead is in the past.
    """
    if (found := _IMF.fullmatch(text)) is not None:
        day, month, year, hour, minute, second = found.groups()
        full_year = int(year)
    elif (found := _RFC850.fullmatch(text)) is not None:
        day, month, year, hour, minute, second = found.groups()
        full_year = this_year - this_year % 100 + int(year)
        if full_year > this_year + 50:
            full_year -= 100
    elif (found := _ASCTIME.fullmatch(text)) is not None:
        month, day, hour, minute, second, year = found.groups()
        full_year = int(year)
    else:
        return None
    number = _MONTH_NUMBER[month]
    if not (1 <= int(day) <= 31 and int(hour) < 24 and int(minute) < 60 and int(second) <= 60 and full_year):
        return None
    if int(day) > calendar.monthrange(full_year, number)[1]:
        return None
    return calendar.timegm((full_year, number, int(day), int(hour), int(minute), int(second)))
