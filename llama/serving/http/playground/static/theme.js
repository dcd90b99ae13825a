// Runs before the page is drawn, so that a chosen theme does not flash the other one first.
try {
  const theme = JSON.parse(localStorage.getItem("codellama-playground"))?.theme;
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // Nothing is stored: the system's theme.
}
