"""Words that may be capitalised without naming anything: sentence starts, headings, function words, ordinary nouns.

A word that is missing here is only looked at more closely; a name that were listed here would never be checked.
"""

_FUNCTION_WORDS = """
a about above according across after again against all almost already also although always am among an and another any anyone
anything are around as at away back be because been before behind being below beneath beside besides best better between beyond
both but by can cannot could couldn't did didn't do does doesn't don't done down due during each either else enough even ever
every everyone everything except exactly few fewer finally first firstly five following for four from further furthermore given
had has hasn't have having he hello hence her here hers hi him his how however i i'm i've i'd i'll if in indeed inside instead
into is isn't it it's its itself just last lastly later least less let like likewise many may maybe me meanwhile might mine
more moreover most much must my near nearly neither never nevertheless next no nobody none nor not note nothing now of off ok
okay on once one ones only onto or other others otherwise our out outside over overall own per perhaps please rather same
second secondly see several shall she should similarly since six so some someone something sometimes soon sorry still such
sure ten than thank thanks that that's the their theirs them then there there's therefore these they third this those though
three through throughout thus to today together tomorrow too toward two under unfortunately unless unlike until unto up upon
us very via was wasn't we well were what whatever when whenever where whereas wherever whether which whichever while who whom
whose why will with within without won't would yes yesterday yet you you're your yours zero dear mr mrs ms dr prof sir q
goodbye i.e e.g etc vs n/a am pm ad bc ce bce eur usd gbp chf jpy cny inr
"""
_ORDINARY_WORDS = """
add added adding addition additional age altitude amount amounts analysis annual answer answers apparently apple apples approach
approximately area areas assuming assumption atomic attribute attributes author average base based bigger biggest boiling books
bought box boxes bread bridge bridges building built buy calculate calculated calculating calculation calculations calculator
call called calls capital capitals car cars change chapter check checked checking checks child children cities city claim
claims class clearly coins combined compare compared comparing comparison compute computed computing conclusion conclusions
conversion convert converted converting correct cost costs count counting countries country currently data date day days
decrease density depth description details difference differences direct directly discount distance divide divided dividing
division document documents dollars double each elements element elevation energy entity equal equals equation error errors
estimate euros evidence example expected explanation expression fact facts fewest field figure figures file files final find
finding found founded friend full garden gives giving good got greater greatest group growth half heavier heaviest height
hence heading highest hour hours hundred improvement increase information input inspect it'll items key kilograms kilometres
known land large larger largest latter least left length level lightest lighter limit line lines list litres located
location long longer longest look looking lowest lower main male mass material maximum mean meaning measured median melting
men method metres minimum minus minute minutes missing money month months multiply multiplied multiplying multiplication name
named names nearest needed new newest number numbers observation observations older oldest open opened order original output
page pages paint paragraph part passage passages path paying people percent percentage perimeter period person pieces place
plan plus point points population populations possible pound pounds precisely present pressure previous price prices problem
product profit purchase quantity question questions quickly quotient quote rank rate ratio reading reason record regarding
remainder remaining repeat report reported result results revenue round rounded rounding row rows run running salary sales
sample saved school score search searching section sentence share ship shop side simple simplified simply size sizes slower
small smaller smallest sold solution source sources specifically speed square start started starting state statement
states step steps student students sub subtotal subtract subtracting subtraction sum summary surface symbol table task
taking tax team temperature temperatures text thousand ticket tickets time times title tool tools total totals town trip
true false try turn type unit units unknown update used using value values verified verification volume walk warning water
way weather week weeks weight weights whole wide wider widest width word words work works world wrong year years younger
youngest river rivers lake lakes mountain mountains island islands language languages metal metals gas gases liquid solid
"""
COMMON: frozenset[str] = frozenset(f"{_FUNCTION_WORDS} {_ORDINARY_WORDS}".split())
OWN_NAMES: frozenset[str] = frozenset({"k2core", "k2", "kimi", "ai", "sqlite", "json", "utf-8"})
_MONTHS = """
january jan,february feb,march mar,april apr,may,june jun,july jul,august aug,september sep sept,october oct,november nov,
december dec
"""
MONTHS: dict[str, int] = {name: number for number, names in enumerate(_MONTHS.split(","), 1) for name in names.split()}
