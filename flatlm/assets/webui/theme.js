// Before the first paint, so that a chosen theme does not flash: everything else waits for main.js.
try {
  const chosen = localStorage.getItem("flatlm.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // A browser that keeps nothing: the system's theme.
}
