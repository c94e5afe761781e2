// The link that `turnout dashboard` printed has the token behind its "#", which no browser sends anywhere. It is taken
// out of the address bar, where shoulders and screenshots see it, and kept for this tab alone, so that it can be reloaded.

const KEY = "turnout-token";

export function findToken() {
  const given = location.hash.slice(1);
  if (given) {
    sessionStorage.setItem(KEY, given);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem(KEY) ?? "";
}
