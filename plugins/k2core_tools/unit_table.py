"""Units with their exact factors to the SI unit of each dimension.

Every factor is exact by definition. Sources: SI, the BIPM SI Brochure, 9th edition (2019), tables 2, 4, 5, 7 and 8; NIST,
NIST Special Publication 811 (2008), appendix B.8, factors printed in bold (exact); YARD, the international yard and pound
agreement of 1959 (yard = 0.9144 m, pound = 0.45359237 kg); IAU, resolution B2 (2012); IEC, IEC 80000-13 (binary prefixes).
"""

from fractions import Fraction

from attrs import frozen

# dimension -> lines of: symbol | factor | source | other spellings.  "a*b" and "a/b" multiply and divide decimals.
_TABLE = {
    "length": """
        m | 1 | SI | metre meter metres meters
        km | 1000 | SI | kilometre kilometer kilometres kilometers
        dm | 0.1 | SI | decimetre decimeter decimetres decimeters
        cm | 0.01 | SI | centimetre centimeter centimetres centimeters
        mm | 0.001 | SI | millimetre millimeter millimetres millimeters
        µm | 0.000001 | SI | um μm micrometre micrometer micrometres micrometers micron microns
        nm | 1e-9 | SI | nanometre nanometer nanometres nanometers
        pm | 1e-12 | SI | picometre picometer picometres picometers
        Å | 1e-10 | NIST | angstrom angstroms ångström ångströms
        in | 0.0254 | YARD | inch inches
        ft | 0.3048 | YARD | foot feet
        yd | 0.9144 | YARD | yard yards
        mi | 1609.344 | YARD | mile miles
        nmi | 1852 | SI | nautical_mile nautical_miles
        au | 149597870700 | IAU | astronomical_unit astronomical_units
        ly | 9460730472580800 | IAU | light_year light_years lightyear lightyears""",
    "mass": """
        kg | 1 | SI | kilogram kilograms kilogramme kilogrammes kilo kilos
        g | 0.001 | SI | gram grams gramme grammes
        mg | 0.000001 | SI | milligram milligrams
        µg | 1e-9 | SI | ug μg microgram micrograms
        t | 1000 | SI | tonne tonnes metric_ton metric_tons
        lb | 0.45359237 | YARD | lbs pound pounds
        oz | 0.45359237/16 | YARD | ounce ounces
        st | 0.45359237*14 | NIST | stone stones
        gr | 0.00006479891 | NIST | grain grains
        ct | 0.0002 | NIST | carat carats
        ton_us | 0.45359237*2000 | NIST | short_ton short_tons us_ton us_tons
        ton_uk | 0.45359237*2240 | NIST | long_ton long_tons uk_ton uk_tons""",
    "time": """
        s | 1 | SI | sec second seconds
        ms | 0.001 | SI | millisecond milliseconds
        µs | 0.000001 | SI | us μs microsecond microseconds
        ns | 1e-9 | SI | nanosecond nanoseconds
        min | 60 | SI | minute minutes
        h | 3600 | SI | hr hrs hour hours
        d | 86400 | SI | day days
        week | 604800 | NIST | wk weeks
        year | 31557600 | IAU | yr years a_julian julian_year julian_years""",
    "area": """
        m2 | 1 | SI | m^2 m² sqm square_metre square_meter square_metres square_meters
        km2 | 1000000 | SI | km^2 km² sqkm square_kilometre square_kilometer square_kilometres square_kilometers
        cm2 | 0.0001 | SI | cm^2 cm² square_centimetre square_centimeter square_centimetres square_centimeters
        mm2 | 0.000001 | SI | mm^2 mm² square_millimetre square_millimeter square_millimetres square_millimeters
        ha | 10000 | SI | hectare hectares
        are | 100 | NIST | ares
        in2 | 0.0254*0.0254 | YARD | in^2 in² sqin square_inch square_inches
        ft2 | 0.3048*0.3048 | YARD | ft^2 ft² sqft square_foot square_feet
        yd2 | 0.9144*0.9144 | YARD | yd^2 yd² sqyd square_yard square_yards
        mi2 | 1609.344*1609.344 | YARD | mi^2 mi² sqmi square_mile square_miles
        acre | 0.9144*0.9144*4840 | YARD | ac acres""",
    "volume": """
        m3 | 1 | SI | m^3 m³ cubic_metre cubic_meter cubic_metres cubic_meters
        cm3 | 0.000001 | SI | cm^3 cm³ cc cubic_centimetre cubic_centimeter cubic_centimetres cubic_centimeters
        mm3 | 1e-9 | SI | mm^3 mm³ cubic_millimetre cubic_millimeter cubic_millimetres cubic_millimeters
        km3 | 1000000000 | SI | km^3 km³ cubic_kilometre cubic_kilometer cubic_kilometres cubic_kilometers
        L | 0.001 | SI | l litre liter litres liters
        dL | 0.0001 | SI | dl decilitre deciliter decilitres deciliters
        cL | 0.00001 | SI | cl centilitre centiliter centilitres centiliters
        mL | 0.000001 | SI | ml millilitre milliliter millilitres milliliters
        in3 | 0.0254*0.0254*0.0254 | YARD | in^3 in³ cubic_inch cubic_inches
        ft3 | 0.3048*0.3048*0.3048 | YARD | ft^3 ft³ cubic_foot cubic_feet
        yd3 | 0.9144*0.9144*0.9144 | YARD | yd^3 yd³ cubic_yard cubic_yards
        gal | 0.003785411784 | NIST | gallon gallons us_gallon us_gallons
        qt | 0.003785411784/4 | NIST | quart quarts us_quart us_quarts
        pt | 0.003785411784/8 | NIST | pint pints us_pint us_pints
        cup | 0.003785411784/16 | NIST | cups us_cup us_cups
        floz | 0.003785411784/128 | NIST | fl_oz fluid_ounce fluid_ounces us_fluid_ounce us_fluid_ounces
        tbsp | 0.003785411784/256 | NIST | tablespoon tablespoons
        tsp | 0.003785411784/768 | NIST | teaspoon teaspoons
        gal_uk | 0.00454609 | NIST | uk_gallon uk_gallons imperial_gallon imperial_gallons
        pt_uk | 0.00454609/8 | NIST | uk_pint uk_pints imperial_pint imperial_pints
        bbl | 0.003785411784*42 | NIST | barrel barrels""",
    "speed": """
        m/s | 1 | SI | mps metres_per_second meters_per_second metre_per_second meter_per_second
        km/h | 1000/3600 | SI | kmh kph km_per_hour kilometres_per_hour kilometers_per_hour kilometer_per_hour
        km/s | 1000 | SI | kilometres_per_second kilometers_per_second
        mph | 1609.344/3600 | YARD | mi/h miles_per_hour mile_per_hour
        ft/s | 0.3048 | YARD | fps feet_per_second foot_per_second
        kn | 1852/3600 | SI | kt knot knots
        c | 299792458 | SI | speed_of_light""",
    "energy": """
        J | 1 | SI | joule joules
        kJ | 1000 | SI | kilojoule kilojoules
        MJ | 1000000 | SI | megajoule megajoules
        GJ | 1000000000 | SI | gigajoule gigajoules
        Wh | 3600 | SI | watt_hour watt_hours
        kWh | 3600000 | SI | kilowatt_hour kilowatt_hours
        MWh | 3600000000 | SI | megawatt_hour megawatt_hours
        GWh | 3600000000000 | SI | gigawatt_hour gigawatt_hours
        cal | 4.184 | NIST | calorie calories
        kcal | 4184 | NIST | kilocalorie kilocalories
        eV | 1.602176634e-19 | SI | electronvolt electronvolts
        BTU | 1055.05585262 | NIST | btu british_thermal_unit british_thermal_units
        erg | 1e-7 | NIST | ergs""",
    "power": """
        W | 1 | SI | watt watts
        mW | 0.001 | SI | milliwatt milliwatts
        kW | 1000 | SI | kilowatt kilowatts
        MW | 1000000 | SI | megawatt megawatts
        GW | 1000000000 | SI | gigawatt gigawatts
        PS | 75*9.80665 | NIST | metric_horsepower
        hp | 550*0.3048*0.45359237*9.80665 | NIST | horsepower""",
    "pressure": """
        Pa | 1 | SI | pascal pascals
        hPa | 100 | SI | hectopascal hectopascals
        kPa | 1000 | SI | kilopascal kilopascals
        MPa | 1000000 | SI | megapascal megapascals
        GPa | 1000000000 | SI | gigapascal gigapascals
        bar | 100000 | SI | bars
        mbar | 100 | SI | millibar millibars
        atm | 101325 | NIST | atmosphere atmospheres
        Torr | 101325/760 | NIST | torr
        mmHg | 133.322387415 | NIST | millimetre_of_mercury millimetres_of_mercury millimeters_of_mercury
        psi | 0.45359237*9.80665/0.0254/0.0254 | NIST | pound_per_square_inch pounds_per_square_inch""",
    "density": """
        kg/m3 | 1 | SI | kg/m^3 kg/m³ kilograms_per_cubic_metre kilograms_per_cubic_meter
        g/cm3 | 1000 | SI | g/cm^3 g/cm³ grams_per_cubic_centimetre grams_per_cubic_centimeter
        g/mL | 1000 | SI | g/ml grams_per_millilitre grams_per_milliliter
        g/L | 1 | SI | g/l grams_per_litre grams_per_liter
        kg/L | 1000 | SI | kg/l kilograms_per_litre kilograms_per_liter
        lb/ft3 | 0.45359237/0.3048/0.3048/0.3048 | YARD | lb/ft^3 lb/ft³ pounds_per_cubic_foot""",
    "data": """
        bit | 1 | IEC | bits
        kbit | 1000 | IEC | kb kilobit kilobits
        Mbit | 1000000 | IEC | Mb megabit megabits
        Gbit | 1000000000 | IEC | Gb gigabit gigabits
        B | 8 | IEC | byte bytes
        kB | 8*1000 | IEC | KB kilobyte kilobytes
        MB | 8*1000000 | IEC | megabyte megabytes
        GB | 8*1000000000 | IEC | gigabyte gigabytes
        TB | 8*1000000000000 | IEC | terabyte terabytes
        PB | 8*1000000000000000 | IEC | petabyte petabytes
        KiB | 8*1024 | IEC | kibibyte kibibytes
        MiB | 8*1048576 | IEC | mebibyte mebibytes
        GiB | 8*1073741824 | IEC | gibibyte gibibytes
        TiB | 8*1099511627776 | IEC | tebibyte tebibytes""",
    "temperature": """
        K | 1 | SI | kelvin kelvins
        C | 1 | SI | °C ℃ degC celsius degree_celsius degrees_celsius centigrade
        F | 5/9 | NIST | °F ℉ degF fahrenheit degree_fahrenheit degrees_fahrenheit
        R | 5/9 | NIST | °R degR rankine""",
}
_ZERO = {"C": Fraction(27315, 100), "F": Fraction(45967, 100) * Fraction(5, 9)}  # kelvin at the unit's zero


@frozen(kw_only=True)
class Unit:
    """A unit: kelvin, metres, … = value * factor + zero.

    Attributes:
        symbol: how it is written in results.
        dimension: what it measures.
        factor: exact size in the dimension's SI unit (bits for data).
        zero: where its zero lies, in the SI unit; nonzero for Celsius and Fahrenheit only.
        source: key into the sources at the head of this file.
        spellings: other accepted spellings.
    """

    symbol: str
    dimension: str
    factor: Fraction
    source: str
    zero: Fraction = Fraction(0)
    spellings: tuple[str, ...] = ()


def all_units() -> list[Unit]:
    """Every unit, in the table's order."""
    units = []
    for dimension, table in _TABLE.items():
        for line in table.strip().splitlines():
            symbol, factor, source, spellings = (part.strip() for part in line.split("|"))
            units.append(
                Unit(
                    symbol=symbol,
                    dimension=dimension,
                    factor=_product(factor),
                    source=source,
                    zero=_ZERO.get(symbol, Fraction(0)),
                    spellings=tuple(one.replace("_", " ") for one in spellings.split()),
                )
            )
    return units


def _product(text: str) -> Fraction:
    value = Fraction(1)
    for part in text.split("*"):
        first, *divisors = part.split("/")
        value *= Fraction(first)
        for divisor in divisors:
            value /= Fraction(divisor)
    return value
