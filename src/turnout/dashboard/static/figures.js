// Numbers as people read them; the same words as on the command line.

export function span(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

export function size(count) {
  let rest = count;
  for (const unit of ["B", "kB", "MB", "GB"]) {
    if (rest < 1000) return unit === "B" ? `${Math.round(rest)} B` : `${rest.toFixed(1)} ${unit}`;
    rest /= 1000;
  }
  return `${rest.toFixed(1)} TB`;
}

export const counted = (count, what) => (count === 1 ? `1 ${what}` : `${count} ${what}s`);

const pad = (number) => String(number).padStart(2, "0");

/** Local time; with its date where that is not today's. */
export function moment(ts, now) {
  const at = new Date(ts * 1000);
  if (Number.isNaN(at.getTime())) return "?"; // whatever another program wrote into the file
  const time = `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`;
  const day = `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())}`;
  return new Date(now * 1000).toDateString() === at.toDateString() ? time : `${day} ${time}`;
}

/** What to type for one service; the default one needs no name. */
export const typed = (verb, name) => (name === "default" ? `turnout ${verb}` : `turnout ${verb} --service ${name}`);
